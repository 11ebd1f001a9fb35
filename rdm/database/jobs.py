"""What users ask for: build a database, or bring one up to date, neighbors included."""

from __future__ import annotations

from typing import Any

from rdm.compute import ComputeConfig, compute_pool
from rdm.database.build import BuildConfig, DatabaseBuilder
from rdm.database.changes import Removal
from rdm.errors import DatabaseError, UsageError
from rdm.sources import CropConfig
from rdm.storage import Folder, Version, VersionStore


def samples_crop() -> CropConfig:
    """Return the crops of the embedded 120 px photographs: two patches of 96 px.

    More would overlap so much that a query's few neighbors all came from one photograph.
    """
    return CropConfig(frame_size=120, patch_size=96, min_patches=2, max_patches=2)


def build_config(source: str, preset: str = "") -> BuildConfig:
    """Return a preset: `paper` as RDM's Open Images database was cut, `samples` for the embedded photographs.

    Without a name, `samples` is chosen for `samples://` and `paper` for everything else.

    Raises:
        UsageError: there is no such preset.
    """
    name = preset or ("samples" if source.startswith("samples://") else "paper")
    if name == "samples":
        return BuildConfig(source=source, crop=samples_crop(), images_per_shard=128)
    if name == "paper":
        return BuildConfig(source=source)
    raise UsageError(f"there is no preset {name!r}", fix="presets: paper, samples")


def run_build(builder: DatabaseBuilder, compute: ComputeConfig) -> dict[str, Any]:
    """Run every stage and return a summary; a finished database is left as it is."""
    with builder.writing():
        if builder.is_current:
            assert builder.parent is not None
            return {**_summary(builder.parent), "failed": 0, "unchanged": True}
        with compute_pool(compute) as pool:
            counts = builder.ingest(pool)
            builder.patchify(pool)
            builder.embed(pool)
            builder.build_index(pool)
            tables = builder.repair_neighbors(pool)
        version = builder.commit()
    return {
        **_summary(version),
        "failed": counts["failed"],
        "causes": counts["causes"],
        "query_sets": tables,
        "unchanged": False,
    }


def update_builder(
    root: str, removal: Removal | None = None, *, retry_failed: bool = False, only_delete: bool = False
) -> DatabaseBuilder:
    """Return a builder that brings an existing database up to date with its source.

    Args:
        root: folder or URL of the database.
        removal: what goes for good.
        retry_failed: ask again for photographs that failed by a cause that may have passed.
        only_delete: leave the source alone: a removal need not wait for what is new there.

    Raises:
        DatabaseError: the root is no database, or it has no image or patch of an id that is to be deleted.
        UsageError: the condition of the removal cannot be understood, or both are asked for.
    """
    if retry_failed and only_delete:
        raise UsageError("retry_failed asks the source, and only_delete leaves it alone", fix="give one of them")
    version = VersionStore(Folder(root)).require()
    builder = DatabaseBuilder(root, BuildConfig.model_validate(version.config))
    builder.removal = removal or Removal()
    builder.retry_failed, builder.only_delete = retry_failed, only_delete
    if unknown := builder.changes.unknown_images():
        raise DatabaseError(
            f"the database has no image {', '.join(unknown[:5])}",
            where=root,
            fix="image ids are listed in images/*.parquet",
        )
    if unknown := builder.changes.unknown_patches():
        raise DatabaseError(
            f"the database has no patch {', '.join(map(str, unknown[:5]))}",
            where=root,
            fix=f"patch ids run from 0 to {version.next_patch_id - 1}",
        )
    return builder


def update_plan(builder: DatabaseBuilder) -> dict[str, Any]:
    """Return what an update would do, in photographs and patches."""
    return {"changed": not builder.is_current, **builder.plan()}


def _summary(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "photographs": version.num_images,
        "patches": version.num_live_patches,
        "index": version.index["index_key"],
        "recall_at_20": version.index["recall_at_20"],
        "index_decision": version.index["decision"],
        "num_bytes": version.num_bytes,
    }
