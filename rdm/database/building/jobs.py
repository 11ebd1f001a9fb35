"""Jobs that users request: build a database, or bring one up to date, neighbors included."""

from __future__ import annotations

from collections.abc import Sequence

from rdm.compute import Clusters, ComputeConfig, compute_pool
from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.results import BuildResult, PlanFacts
from rdm.database.building.stages import StageRunner, run_plainly, run_stages, unchanged
from rdm.database.changes.holdings import Holdings
from rdm.database.changes.plan import Removal
from rdm.database.settings import settings_of
from rdm.errors import DatabaseError, UsageError
from rdm.sources import CropConfig
from rdm.storage import Folder, VersionStore


def samples_crop() -> CropConfig:
    """Return the crops of the embedded 120 px photographs: two patches of 96 px.

    More would overlap so much that a query's few neighbors all came from one photograph.
    """
    return CropConfig(frame_size=120, patch_size=96, min_patches=2, max_patches=2)


def build_config(source: str, preset: str = "") -> BuildConfig:
    """Return a preset: `paper` (RDM's Open Images crops), `samples`, or `whole` for small pictures.

    Without a name, `samples` is chosen for `samples://` and `paper` for everything else.

    Raises:
        UsageError: there is no such preset.
    """
    name = preset or ("samples" if source.startswith("samples://") else "paper")
    if name == "samples":
        return BuildConfig(source=source, crop=samples_crop(), images_per_shard=128)
    if name == "paper":
        return BuildConfig(source=source)
    if name == "whole":
        return BuildConfig(source=source, crop=CropConfig(mode="whole"))
    raise UsageError(f"there is no preset {name!r}", fix="presets: paper, samples, whole")


def run_build(
    builder: DatabaseBuilder,
    compute: ComputeConfig,
    *,
    planned: BuildPlan | None = None,
    clusters: Clusters | None = None,
    run: StageRunner = run_plainly,
) -> BuildResult:
    """Run every stage of a request; a finished database is left as it is.

    Args:
        builder: the request.
        compute: where shards are computed.
        planned: the plan that was shown, which is executed if no other writer has committed since.
        clusters: Dask clusters that the stages of several jobs share.
        run: runs each stage.
    """
    with builder.writing(planned) as plan:
        if plan.is_current:
            return unchanged(plan)
        with compute_pool(compute, clusters) as pool:
            return run_stages(plan, pool, run)


def update_builder(
    root: str,
    removal: Removal | None = None,
    *,
    retry_failed: bool = False,
    only_delete: bool = False,
    overrides: Sequence[str] = (),
) -> DatabaseBuilder:
    """Return a builder that brings an existing database up to date with its source.

    Args:
        root: folder or URL of the database.
        removal: what goes for good.
        retry_failed: request photographs again that failed by a cause that may have passed.
        only_delete: leave the source alone: a removal need not wait for what is new there.
        overrides: settings as `key=value`, for this update and later ones; fixed ones are refused
            when it runs.

    Raises:
        DatabaseError: the root is no database, or it has no image or patch of an id to delete.
        UsageError: a setting cannot be understood, or `retry_failed` meets `only_delete`.
    """
    if retry_failed and only_delete:
        raise UsageError(
            "retry_failed asks the source, and only_delete leaves it alone", fix="give one of them"
        )

    folder, removal = Folder(root), removal or Removal()
    version = VersionStore(folder).require()
    config = settings_of(version).with_overrides(overrides)

    # Before the source is listed, which may take long: a typing mistake shows at once.
    check_known(Holdings(folder, version), removal)
    return DatabaseBuilder(root, config, removal, retry_failed, only_delete)


def check_known(held: Holdings, removal: Removal) -> None:
    """Raise DatabaseError where something is to be removed by an id that a version never had."""
    end = held.version.next_patch_id if held.version else 0
    patches = sorted(patch_id for patch_id in removal.patch_ids if not 0 <= patch_id < end)

    # Reading the ledgers takes long where they are many: only a removal by id needs them.
    images = removal.image_ids
    if images:
        images -= set(held.ledger["image_id"].to_pylist())

    if images or patches:
        unknown = [
            *(f"image {image_id}" for image_id in sorted(images)),
            *(f"patch {number}" for number in patches),
        ]
        raise DatabaseError(
            f"nothing was deleted: the database has no {', '.join(unknown)}",
            where=held.folder.url,
            fix="take these ids off the list; image ids are in images/*.parquet, patch ids "
            f"run from 0 to {end - 1}",
        )


def update_plan(builder: DatabaseBuilder) -> PlanFacts:
    """Return what an update would do, in photographs and patches, and what left the list."""
    return builder.plan().facts()
