"""`rdm neighbors build`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DaskOption, DryRunFlag, JsonFlag, SetOption, show


def register(app: App) -> None:
    """Add the command."""
    neighbors = App(name="neighbors", help="Precompute the neighbors of a query set.")
    neighbors.command(build)
    app.command(neighbors)


def build(
    *,
    root: Annotated[str, Parameter(help="the database")],
    queries: Annotated[str, Parameter(help="source of the query photographs, e.g. folder:///photos")],
    name: Annotated[str, Parameter(help="name of the query set, for later")],
    set_: SetOption = None,
    dask: DaskOption = "local",
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> int:
    """Look up the nearest patches of every crop of a query set and store them in a new version of the database.

    Example: rdm neighbors build --root birds --queries folder:///photos --name train
    """
    from rdm.compute import ComputeConfig, compute_pool
    from rdm.database import RetrievalDatabase
    from rdm.database.neighbors import build_neighbors
    from rdm.sources import QuerySet
    from rdm.training.presets import neighbor_config

    config = neighbor_config(queries).with_overrides(set_ or [])
    if dry_run:
        found = QuerySet(config.queries)
        show(
            {
                "root": root,
                "would": "look up neighbors",
                "photographs": found.listing.num_rows,
                "shards": len(found.stems),
                "config": config.model_dump(mode="json"),
            },
            as_json=json,
        )
        return 0
    RetrievalDatabase.open(root)  # refuse what is no database before a cluster starts
    with compute_pool(ComputeConfig(dask=dask)) as pool:
        info = build_neighbors(root, name, config, pool)
    show(
        {
            "name": name,
            "queries": info["num_queries"],
            "failures": len(info["failures"]),
            "mean_top1_similarity": info["mean_top1_similarity"],
        },
        as_json=json,
        title="neighbors",
    )
    return 3 if info["failures"] else 0
