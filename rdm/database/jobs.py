"""What users ask for: build a database, or bring one up to date, neighbors included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdm.compute import ComputeConfig, compute_pool
from rdm.database.build import BuildConfig, DatabaseBuilder
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
            builder.patchify()
            builder.embed(pool)
        builder.build_index()
        version = builder.commit()
    return {**_summary(version), "failed": counts["failed"], "causes": counts["causes"], "unchanged": False}


def update_builder(root: str, delete_images: Sequence[str] = ()) -> DatabaseBuilder:
    """Return a builder that brings an existing database up to date with its source.

    Raises:
        DatabaseError: the root is no database, or it has no image of an id that is to be deleted.
    """
    version = VersionStore(Folder(root)).require()
    builder = DatabaseBuilder(root, BuildConfig.model_validate(version.config))
    builder.delete_images = frozenset(delete_images)
    if unknown := builder.unknown_images():
        raise DatabaseError(
            f"the database has no image {', '.join(sorted(unknown)[:5])}",
            where=root,
            fix="image ids are listed in images/*.parquet",
        )
    return builder


def update_plan(builder: DatabaseBuilder) -> dict[str, Any]:
    """Return what an update would do, in photographs, and which query sets' neighbors are those of an older version."""
    stale = _stale_query_sets(builder.folder)
    return {"changed": bool(stale) or not builder.is_current, **builder.plan(), "stale_query_sets": stale}


def update_refresh_neighbors(root: str, compute: ComputeConfig) -> list[str]:
    """Look the neighbors of the query sets of older versions up again in the current one; return their names."""
    from rdm.database.neighbors import NeighborConfig, NeighborTable, build_neighbors

    folder = Folder(root)
    names = _stale_query_sets(folder)
    if names:
        with compute_pool(compute) as pool:
            for name in names:
                config = NeighborConfig.model_validate(NeighborTable(folder, name).info["config"])
                build_neighbors(root, name, config, pool)
    return names


def _stale_query_sets(folder: Folder) -> list[str]:
    from rdm.database.neighbors import NeighborTable

    number = VersionStore(folder).require().number
    return [
        name for name in NeighborTable.names(folder) if NeighborTable(folder, name).info["database_version"] != number
    ]


def _summary(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "photographs": version.num_images,
        "patches": version.num_live_patches,
        "index": version.index["index_key"],
        "recall_at_20": version.index["recall_at_20"],
        "num_bytes": version.num_bytes,
    }
