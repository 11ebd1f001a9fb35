"""What users ask for: build a database, or bring one up to date, neighbors included."""

from __future__ import annotations

from collections.abc import Sequence

from rdm.compute import ComputeConfig, compute_pool
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.checks import SHOWN, delisted
from rdm.database.building.results import BuildResult, PlanFacts
from rdm.database.changes.plan import Removal
from rdm.database.facts import version_facts
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
    """Return a preset: `paper` as RDM's Open Images database was cut, `samples` for the embedded photographs, `whole`
    for small ones.

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


def run_build(builder: DatabaseBuilder, compute: ComputeConfig) -> BuildResult:
    """Run every stage and return a summary; a finished database is left as it is."""
    with builder.writing():
        if builder.is_current:
            assert builder.parent is not None
            return BuildResult(**dict(version_facts(builder.parent)), failed=0, unchanged=True)
        with compute_pool(compute) as pool:
            counts = builder.ingest(pool)
            if builder.is_current:
                assert builder.parent is not None
                return BuildResult(**dict(version_facts(builder.parent)), failed=counts.failed, unchanged=True)
            patches = builder.patchify(pool)
            embedded = builder.embed(pool).num_patches
            device = pool.describe_device() if embedded else None
            builder.build_index(pool)
            tables = builder.repair_neighbors(pool)
        version = builder.commit()
    return BuildResult(
        **dict(version_facts(version)),
        patch_pixels=patches.patch_pixels,
        failed=counts.failed,
        causes=counts.causes,
        query_sets=tables,
        device=device,
        unchanged=False,
    )


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
        retry_failed: ask again for photographs that failed by a cause that may have passed.
        only_delete: leave the source alone: a removal need not wait for what is new there.
        overrides: settings as `key=value`, for this update and later ones; fixed ones are refused when it runs.

    Raises:
        DatabaseError: the root is no database, or it has no image or patch of an id that is to be deleted.
        SourceError: the source is empty.
        UsageError: the condition of the removal or a setting cannot be understood, or both are asked for.
    """
    if retry_failed and only_delete:
        raise UsageError("retry_failed asks the source, and only_delete leaves it alone", fix="give one of them")
    version = VersionStore(Folder(root)).require()
    builder = DatabaseBuilder(root, settings_of(version).with_overrides(overrides))
    builder.removal = removal or Removal()
    builder.retry_failed, builder.only_delete = retry_failed, only_delete
    images, patches = builder.changes.unknown_images(), builder.changes.unknown_patches()
    if images or patches:
        unknown = [f"image {image_id}" for image_id in images] + [f"patch {patch_id}" for patch_id in patches]
        raise DatabaseError(
            f"nothing was deleted: the database has no {', '.join(unknown)}",
            where=root,
            fix="take these ids off the list; image ids are in images/*.parquet, patch ids run from 0 to "
            f"{version.next_patch_id - 1}",
        )
    return builder


def update_plan(builder: DatabaseBuilder) -> PlanFacts:
    """Return what an update would do, in photographs and patches; and what a list has no more, where it is one."""
    plan = builder.plan()  # first, because it refuses what cannot be
    gone = delisted(builder.changes, builder.config)
    first = gone[:SHOWN] or None
    return PlanFacts(changed=not builder.is_current, **plan, delisted=len(gone) or None, first_delisted=first)
