"""A database, neighbors and latents of a dozen photographs, and a recipe that is tiny enough to
train in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from training_jobs import Prepared

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, build_neighbors
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.recipes import recipe_config
from rdm.sources import CropConfig, QuerySetConfig
from rdm.training.config import TrainConfig
from rdm.training.data.latent_cache import CacheConfig, build_cache

CROP = CropConfig(frame_size=40, patch_size=32, min_patches=2, max_patches=2)


@pytest.fixture(scope="session")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], tiny_encoder: str
) -> Prepared:
    """Build a database of one folder, and neighbors and latents of another."""
    root = tmp_path_factory.mktemp("prepared")
    for name, first in (("database", 0), ("queries", 100)):
        (root / name).mkdir()
        for number in range(12):
            (root / name / f"{name}{number:02d}.jpg").write_bytes(encoded(first + number))
    compute = ComputeConfig(dask="inline")
    build = BuildConfig(source=f"folder://{root}/database", encoder=tiny_encoder, crop=CROP)
    run_build(DatabaseBuilder(str(root / "db"), build), compute)
    queries = QuerySetConfig(source=f"folder://{root}/queries", crop=CROP, images_per_shard=8)
    with compute_pool(compute) as pool:
        build_neighbors(
            str(root / "db"), "train", NeighborConfig(queries=queries, k_stored=6), pool
        )
        build_cache(str(root / "cache"), CacheConfig(queries=queries, resolution=32), pool)
    return Prepared(str(root / "db"), str(root / "cache"))


@pytest.fixture
def own_cache(prepared: Prepared, tmp_path: Path) -> Path:
    """A copy of the latents, to be damaged."""
    shutil.copytree(prepared.cache, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def own_database(prepared: Prepared, tmp_path: Path) -> Path:
    """A copy of the database, to be changed."""
    shutil.copytree(prepared.database, tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture(scope="session")
def tiny_recipe() -> TrainConfig:
    """`rdm-tiny` with a network of one narrow block per level."""
    return recipe_config("rdm-tiny").with_overrides(
        [
            "max_steps=60",
            "batch_size=4",
            "checkpoint_every=10",
            "log_every=1",
            "num_ranks=2",
            "warmup_steps=2",
            "objective.network.block_out_channels=[16, 32]",
            "objective.network.attention_levels=[false, true]",
            "objective.network.norm_num_groups=8",
            "objective.network.head_dim=8",
            "objective.network.sample_size=8",
            "objective.network.cross_attention_dim=16",
            "objective.held_out_fraction=0.3",
            "objective.conditions.neighbors.pool=6",
        ]
    )
