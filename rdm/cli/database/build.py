"""`rdm database build` and `update`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rdm.cli.console import (
    DaskOption,
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    SetOption,
    in_range,
    show,
)
from rdm.cli.database.options import Root
from rdm.errors import SourceError, UsageError

if TYPE_CHECKING:
    from rdm.compute import ComputeConfig
    from rdm.database.building.build_plan import BuildPlan
    from rdm.database.building.estimate import Estimate
    from rdm.database.building.results import BuildResult


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

    # The preset, the file, then flags.
    settings = (
        build_config(source, preset).merged_with_file(config).model_copy(update={"source": source})
    )
    settings = settings.with_overrides(set_ or [])
    builder = DatabaseBuilder(root, settings)

    # A folder that cannot be written is told now, not when the run starts.
    if dry_run:
        builder.store.check_writable()
        plan = builder.plan()
        found = _estimate(plan, ComputeConfig(dask=dask, device=device), trial, price_per_hour)
        resolved = settings.model_dump(mode="json")
        show(
            {
                "root": root,
                "would": "build",
                **plan.facts().to_json(),
                "takes": {} if found is None else found.to_json(),
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

    # The plan comes first: it says whether there is anything to do.
    images, patches = _read_ids(delete_images, "image"), _read_patch_ids(delete_patches)
    removal = Removal(frozenset(images), frozenset(patches), delete_where)
    builder = update_builder(
        root, removal, retry_failed=retry_failed, only_delete=only_delete, overrides=set_ or []
    )
    plan, compute = builder.plan(), ComputeConfig(dask=dask, device=device)
    facts = plan.facts()

    # Without a change nothing is written, and no workers start.
    if dry_run or not facts.changed:
        takes = {}
        if facts.changed:
            found = _estimate(plan, compute, trial, price_per_hour)
            takes = {"takes": {} if found is None else found.to_json()}
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
) -> Estimate | None:
    """Return what a run would take, on a cluster of this machine or with the workers of a
    scheduler; None: nothing."""
    from rdm.compute import count_workers
    from rdm.database.building.estimate import EstimateConfig, estimate

    config = EstimateConfig(
        num_photographs=trial,
        num_workers=count_workers(compute),
        price_per_hour=price_per_hour,
        device=compute.device,
    )
    return estimate(plan, config)


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
