"""`rdm neighbors ...`: build, drop, contamination."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import (
    DaskOption,
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    SetOption,
    in_range,
    show,
    show_rows,
)

SHOWN_PAIRS = 20


def register(app: App) -> None:
    """Add the command."""
    neighbors = App(name="neighbors", help="Precompute the neighbors of a query set.")
    for command in (build, drop, contamination):
        neighbors.command(command)
    app.command(neighbors)


def build(
    *,
    root: Annotated[str, Parameter(help="the database")],
    queries: Annotated[
        str, Parameter(help="source of the query photographs, e.g. folder:///photos")
    ],
    name: Annotated[str, Parameter(help="name of the query set, for later")],
    exclude_self: Annotated[
        bool,
        Parameter(
            negative="",
            help="no neighbors from the crop's own photograph: same bytes, or same image id",
        ),
    ] = False,
    exclude_above: Annotated[
        float | None,
        Parameter(
            help="no near-duplicates: patches at least this similar, such as 0.95",
            validator=in_range(0, 1, excluding=0),
        ),
    ] = None,
    set_: SetOption = None,
    dask: DaskOption = "local",
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> int:
    """Look up the nearest patches of every crop of a query set and store them in a new version of
    the database.

    A photograph that is in the database too is its own nearest neighbor, and a network learns to
    copy it: leave it out with --exclude-self and --exclude-above. What was left out is recorded;
    `rdm neighbors contamination` counts it.

    Example: rdm neighbors build --root birds --queries folder:///photos --name train --exclude-self
    """
    from rdm.compute import ComputeConfig, compute_pool
    from rdm.database import RetrievalDatabase
    from rdm.database.neighbors.lookup import build_neighbors, check_name
    from rdm.sources import QuerySet
    from rdm.training.presets import neighbor_config

    chosen = {"exclude_self": exclude_self, "exclude_above": exclude_above}
    config = neighbor_config(queries).model_copy(update=chosen).with_overrides(set_ or [])
    RetrievalDatabase.open(root)  # refuse what is no database before a cluster starts
    check_name(name)

    # What would be looked up: listed, not embedded.
    if dry_run:
        found = QuerySet(config.queries)
        counts = {"photographs": found.listing.num_rows, "shards": len(found.stems)}
        resolved = config.model_dump(mode="json")
        show(
            {"root": root, "would": "look up neighbors", **counts, "config": resolved}, as_json=json
        )
        return 0

    with compute_pool(ComputeConfig(dask=dask, device=device)) as pool:
        info = build_neighbors(root, name, config, pool)
        used = pool.describe_device()

    facts = {
        "queries": info.num_queries,
        "failures": len(info.failures),
        "excluded": info.num_excluded,
    }
    similarity = info.mean_top1_similarity
    show(
        {"name": name, **facts, "mean_top1_similarity": similarity, "device": used},
        as_json=json,
        title="neighbors",
    )
    return 3 if info.failures else 0


def drop(
    *,
    root: Annotated[str, Parameter(help="the database")],
    name: Annotated[
        str, Parameter(help="the query set, as `rdm neighbors build --name` called it")
    ],
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Make a version of the database without the neighbors of a query set. Readers of older
    versions still have them.

    Updates need not repair the table any more, nor can it stand in the way of a removal. Its files
    go with the next `rdm database compact`.

    Example: rdm neighbors drop --root birds --name train
    """
    from rdm.database import NeighborTable, RetrievalDatabase
    from rdm.database.neighbors.lookup import drop_neighbors

    database = RetrievalDatabase.open(root)
    table = NeighborTable(database.folder, name, database.version)
    facts = {
        "name": name,
        "queries": table.info.num_queries,
        "config": table.config.model_dump(mode="json"),
    }

    if dry_run:
        show({"root": root, "would": "drop neighbors", **facts}, as_json=json, title="plan")
        return
    show(
        {"root": root, **facts, "version": drop_neighbors(root, name)},
        as_json=json,
        title="dropped",
    )


def contamination(
    *,
    root: Annotated[str, Parameter(help="the database")],
    name: Annotated[
        str, Parameter(help="the query set, as `rdm neighbors build --name` called it")
    ],
    threshold: Annotated[
        float,
        Parameter(help="cosine similarity from which on a patch is a near-duplicate of a crop"),
    ] = 0.95,
    gallery: Annotated[
        Path | None, Parameter(help="write the worst pairs side by side as an HTML page")
    ] = None,
    worst: Annotated[int, Parameter(help="pairs on that page", validator=in_range(0))] = 24,
    json: JsonFlag = False,
) -> int:
    """Say which photographs of a query set the database holds too: the same file or image id, or
    nearly the same.

    Exit code 0: there are none, or the neighbors were built without them; 1: some can become
    neighbors. Then build the neighbors again with --exclude-self and --exclude-above, or remove the
    photographs from the database. What a table of k neighbors does not show (more than k
    near-duplicates of one crop) is not counted.

    Example: rdm neighbors contamination --root birds --name test --gallery pairs.html
    """
    from rdm.database import RetrievalDatabase
    from rdm.database.neighbors.contamination import measure_contamination

    database = RetrievalDatabase.open(root)
    found = measure_contamination(database, name, threshold)

    if gallery is not None:
        from rdm.report.html.contamination_page import write_contamination_page

        write_contamination_page(gallery, database, found, worst)

    # Programs get every pair, people the first.
    if json:
        show(
            {**found.summary().to_json(), "list": [pair.to_json() for pair in found.pairs]},
            as_json=True,
        )
    else:
        show(found.summary().to_json(), as_json=False, title="contamination")
        rows = [
            [
                pair.query_image,
                pair.image_id,
                pair.match,
                f"{pair.similarity:.4f}",
                "yes" if pair.excluded else "no",
            ]
            for pair in found.pairs[:SHOWN_PAIRS]
        ]
        if rows:
            show_rows(
                ["query photograph", "in the database", "same by", "similarity", "excluded"], rows
            )

    # A leak fails, so that a script stops before it trains.
    return 1 if found.leaks else 0
