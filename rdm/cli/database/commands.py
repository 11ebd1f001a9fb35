"""`rdm database ...`: build, update, changes, compact, search, status, verify, inspect, card."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from rdm.cli.database import exchange
from rdm.errors import SourceError, UsageError

if TYPE_CHECKING:
    from rdm.compute import ComputeConfig
    from rdm.database import RetrievalDatabase
    from rdm.database.building.build_plan import BuildPlan
    from rdm.database.building.results import BuildResult
    from rdm.sampling.queries import Query

Root = Annotated[str, Parameter(name="--root", help="the database's folder or URL")]
TrialOption = Annotated[
    int,
    Parameter(
        name="--trial",
        help="with --dry-run: photographs that are really stored and embedded, to measure",
        validator=in_range(0),
    ),
]
PriceOption = Annotated[
    float | None,
    Parameter(
        name="--price-per-hour",
        help="with --dry-run: of all machines together, for the cost",
        validator=in_range(0),
    ),
]
PARTIAL = 3
BRIEF = (
    *(
        "version",
        "photographs",
        "patches",
        "index",
        "recall_at_20",
        "index_decision",
        "num_bytes",
        "patch_pixels",
    ),
    *("failed", "causes", "query_sets", "device", "unchanged"),
)


def register(app: App) -> None:
    """Add the commands."""
    database = App(name="database", help="Build, update, search and check a retrieval database.")
    for command in (build, update, changes, compact, search, status, verify, inspect, card):
        database.command(command)
    exchange.register(database)
    app.command(database)


def build(
    *,
    root: Root,
    source: Annotated[
        str,
        Parameter(
            help="e.g. folder:///photos, urls:///lists/birds.csv or "
            "openimages://validation?limit=500"
        ),
    ],
    preset: Annotated[
        str,
        Parameter(
            help="paper; whole, for small photographs: one patch, the central square; "
            "samples, for the embedded 120 px"
        ),
    ] = "",
    config: Annotated[Path | None, Parameter(help="a JSON file of settings")] = None,
    set_: SetOption = None,
    dask: DaskOption = "local",
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    trial: TrialOption = 48,
    price_per_hour: PriceOption = None,
    json: JsonFlag = False,
) -> int:
    """Make a database from photographs: store, cut, embed, index. The same command again resumes,
    or does nothing.

    Example: rdm database build --root birds --source folder:///home/me/birds
    """
    from rdm.compute import ComputeConfig
    from rdm.database.building.builder import DatabaseBuilder
    from rdm.database.building.jobs import build_config, run_build

    settings = (
        build_config(source, preset).merged_with_file(config).model_copy(update={"source": source})
    )
    settings = settings.with_overrides(set_ or [])
    builder = DatabaseBuilder(root, settings)
    if dry_run:
        builder.store.check_writable()
        plan = builder.plan()
        takes = _estimate(plan, ComputeConfig(dask=dask, device=device), trial, price_per_hour)
        resolved = settings.model_dump(mode="json")
        show(
            {
                "root": root,
                "would": "build",
                **plan.facts().to_json(),
                "takes": takes,
                "config": resolved,
            },
            as_json=json,
        )
        return 0
    result = run_build(builder, ComputeConfig(dask=dask, device=device))
    show(_shown(result, as_json=json), as_json=json, title="database")
    return PARTIAL if result.failed else 0


def update(
    *,
    root: Root,
    delete_images: Annotated[
        Path | None, Parameter(help="a file with one image id per line to delete for good")
    ] = None,
    delete_patches: Annotated[
        Path | None, Parameter(help="a file with one patch id per line to delete for good")
    ] = None,
    delete_where: Annotated[
        str,
        Parameter(
            help="delete for good the images whose row in images/*.parquet fulfills this condition"
        ),
    ] = "",
    retry_failed: Annotated[
        bool,
        Parameter(negative="", help="ask again for what failed by a cause that may have passed"),
    ] = False,
    only_delete: Annotated[
        bool,
        Parameter(
            negative="",
            help="do not look at the source: what is new there waits for another update",
        ),
    ] = False,
    set_: SetOption = None,
    dask: DaskOption = "local",
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    trial: TrialOption = 48,
    price_per_hour: PriceOption = None,
    json: JsonFlag = False,
) -> int:
    """Bring a database up to date with its source: add what is new, delete what is gone or asked to
    go.

    The index and stored neighbors are repaired at the cost of what changed. Does nothing, quickly,
    without a change.

    Example: rdm database update --root birds --delete-where "license == 'https://example.org/x' and
        author == 'X'"

    Example: rdm database update --root birds --delete-images removed.txt --only-delete
    """
    from rdm.compute import ComputeConfig
    from rdm.database.building.jobs import run_build, update_builder
    from rdm.database.changes.plan import Removal

    images, patches = _read_ids(delete_images, "image"), _read_patch_ids(delete_patches)
    removal = Removal(frozenset(images), frozenset(patches), delete_where)
    builder = update_builder(
        root, removal, retry_failed=retry_failed, only_delete=only_delete, overrides=set_ or []
    )
    plan, compute = builder.plan(), ComputeConfig(dask=dask, device=device)
    facts = plan.facts()
    if dry_run or not facts.changed:
        takes = {"takes": _estimate(plan, compute, trial, price_per_hour)} if facts.changed else {}
        show(
            {"root": root, **facts.to_json(), **takes},
            as_json=json,
            title="plan" if dry_run else "nothing changed",
        )
        return 0
    result = run_build(builder, compute, planned=plan)
    show({**facts.to_json(), **_shown(result, as_json=json)}, as_json=json, title="database")
    return PARTIAL if result.failed else 0


def _shown(result: BuildResult, *, as_json: bool) -> dict[str, Any]:
    """Return everything for a program, and for people what a run changes."""
    found = result.to_json()
    return found if as_json else {name: found[name] for name in BRIEF if name in found}


def _estimate(
    plan: BuildPlan, compute: ComputeConfig, trial: int, price_per_hour: float | None
) -> dict[str, Any]:
    """Return what a run would take, on a cluster of this machine or with the workers of a
    scheduler; empty: nothing."""
    from rdm.compute import count_workers
    from rdm.database.building.estimate import EstimateConfig, estimate

    config = EstimateConfig(
        num_photographs=trial,
        num_workers=count_workers(compute),
        price_per_hour=price_per_hour,
        device=compute.device,
    )
    found = estimate(plan, config)
    return found.to_json() if found is not None else {}


def changes(
    *,
    root: Root,
    since: Annotated[int | None, Parameter(help="a version; by default the one before")] = None,
    version: Annotated[int | None, Parameter(help="a later version; by default the newest")] = None,
    gallery: Annotated[
        Path | None, Parameter(help="write what changed as an HTML page, with the new patches")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Tell what changed from one version to another: added, removed and unusable by cause, index,
    neighbors.

    Example: rdm database changes --root birds --gallery changes.html
    """
    from rdm.database import RetrievalDatabase
    from rdm.database.changes.version_diff import describe_changes
    from rdm.report.html.changes import change_rows, write_changes_page

    database = RetrievalDatabase.open(root)
    found = describe_changes(database.folder, since=since, version=version)
    if gallery is not None:
        write_changes_page(gallery, database, found)
    if json:
        show({"root": root, **found.facts().to_json()}, as_json=True)
    else:
        title = (
            f"from version {found.since} to {found.version}"
            if found.since
            else f"version {found.version}"
        )
        show_rows(
            ["what", "count", "detail"], [list(row.values()) for row in change_rows(found)], title
        )


def compact(*, root: Root, dry_run: DryRunFlag = False, json: JsonFlag = False) -> None:
    """Remove deleted photographs and their vectors from the disk, and drop all older versions.

    Patch ids stay. Readers of older versions cannot go on. Killed anywhere, the same command
    finishes.

    Example: rdm database compact --root birds --dry-run
    """
    from rdm.database.changes.compact import compact_database, compaction_plan

    if dry_run:
        show(
            {"root": root, "would": "compact", **compaction_plan(root).to_json()},
            as_json=json,
            title="plan",
        )
        return
    show({"root": root, **compact_database(root).to_json()}, as_json=json, title="database")


def search(
    *,
    root: Root,
    text: Annotated[str | None, Parameter(help="what to look for, in words")] = None,
    image: Annotated[Path | None, Parameter(help="what to look for, as a picture file")] = None,
    k: Annotated[
        int, Parameter(name=["-k", "--k"], help="how many neighbors", validator=in_range(1))
    ] = 20,
    exact: Annotated[
        bool, Parameter(negative="", help="compare with every vector, do not ask the index")
    ] = False,
    gallery: Annotated[Path | None, Parameter(help="write the result as an HTML page")] = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> None:
    """Find the patches nearest to a text or a picture.

    Example: rdm database search --root birds --text "an owl at night" -k 5
    """
    from rdm.compute.device import compute_device, describe_device
    from rdm.database import RetrievalDatabase
    from rdm.sampling.queries import image_queries, load_query_image, text_queries

    if (text is None) == (image is None):
        raise UsageError("give --text or --image, and only one of them", fix='--text "an owl"')
    database = RetrievalDatabase.open(root, device=device)
    if image is not None:
        query = image_queries(database, [load_query_image(image)], [str(image)], k, exact=exact)[0]
    else:
        query = text_queries(database, [str(text)], k, exact=exact)[0]
    if gallery is not None:
        from rdm.report.html.database_pages import write_search_gallery

        write_search_gallery(gallery, database, query.label, query.neighbor_ids, query.similarities)
    rows, used = _found_rows(database, query), describe_device(compute_device(device))
    if json:
        found = {
            "query": query.label,
            "kind": query.kind,
            "version": database.version.number,
            "device": used,
        }
        show({**found, "results": rows}, as_json=True)
    else:
        columns = ("patch_id", "similarity", "image_id", "box")
        shown = [[row[column] for column in columns] for row in rows]
        show_rows(
            ["patch", "similarity", "image", "box"], shown, f"{query.label} (embedded on {used})"
        )


def _found_rows(database: RetrievalDatabase, query: Query) -> list[dict[str, Any]]:
    return [
        {
            "patch_id": record.patch_id,
            "similarity": round(float(similarity), 6),
            "image_id": record.image_id,
            "box": record.box,
            "author": record.author,
            "license": record.license,
            "url": record.url,
        }
        for record, similarity in zip(
            database.records(query.neighbor_ids), query.similarities, strict=True
        )
    ]


def status(*, root: Root, json: JsonFlag = False) -> None:
    """Say what a database holds: version, counts, encoder, index with its measured recall, query
    sets.

    Example: rdm database status --root birds
    """
    from rdm.database import RetrievalDatabase

    show(RetrievalDatabase.open(root).status().to_json(), as_json=json, title=root)


def verify(
    *,
    root: Root,
    since: Annotated[
        int | None, Parameter(help="read only what an older version does not have too")
    ] = None,
    json: JsonFlag = False,
) -> int:
    """Recompute every digest and invariant, and name the part that broke; exit code 1 where one
    did.

    Example: rdm database verify --root birds
    """
    from rdm.database.verify.verify import verify_database

    findings = verify_database(root, since=since)
    show({"root": root, "ok": not findings, "findings": findings}, as_json=json)
    return 1 if findings else 0


def inspect(
    *,
    root: Root,
    patch: Annotated[int, Parameter(help="a patch id")],
    k: Annotated[int, Parameter(help="how many neighbors", validator=in_range(1))] = 12,
    out: Annotated[Path, Parameter(help="the HTML page to write")] = Path("patch.html"),
    json: JsonFlag = False,
) -> None:
    """Show a patch, its place in its photograph, whose it is, and its neighbors as an HTML page.

    Example: rdm database inspect --root birds --patch 17 --out patch.html
    """
    import numpy as np

    from rdm.database import RetrievalDatabase
    from rdm.report.html.database_pages import write_patch_page

    database = RetrievalDatabase.open(root)
    write_patch_page(out, database, patch, k)
    if json:
        record = database.records(np.array([patch]))[0]
        show({"page": out, "version": database.version.number, **asdict(record)}, as_json=True)
    else:
        sys.stdout.write(f"{out}\n")


def card(
    *,
    root: Root,
    out: Annotated[Path | None, Parameter(help="a file instead of standard output")] = None,
    contact: Annotated[str, Parameter(help="whom to ask for removal")] = "",
    json: JsonFlag = False,
) -> None:
    """Write the dataset card as Markdown: counts, licenses, authors, failures by cause, gaps, whom
    to ask for removal.

    Example: rdm database card --root birds --contact you@example.org --out README.md
    """
    from rdm.database import RetrievalDatabase
    from rdm.report.database_card import database_card
    from rdm.report.html.page import write_text

    database = RetrievalDatabase.open(root)
    text = database_card(database, contact)
    if out is not None:
        write_text(out, text)
    if json:
        show(
            {"root": root, "version": database.version.number, "out": out, "card": text},
            as_json=True,
        )
    elif out is None:
        sys.stdout.write(text)


def _read_ids(path: Path | None, kind: str) -> list[str]:
    if path is None:
        return []
    from rdm.sources.lists.list_files import read_lines

    try:
        return read_lines(path)
    except SourceError as error:
        raise UsageError(
            f"the list of {kind} ids cannot be read: {error.what.partition(': ')[2]}",
            where=path,
            fix=f"give a text file with one {kind} id per line",
        ) from error


def _read_patch_ids(path: Path | None) -> list[int]:
    lines = _read_ids(path, "patch")
    for line in lines:
        if not line.isdecimal():
            raise UsageError(
                f"{line!r} is not a patch id", where=path, fix="write one number per line"
            )
    return [int(line) for line in lines]
