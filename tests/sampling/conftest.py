"""A database of eight photographs, and a model of random weights that draws from it in
milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from random_model import write_random_model

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.sampling import Model, open_model
from rdm.sources import CropConfig


@pytest.fixture(scope="session")
def database(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], tiny_encoder: str
) -> RetrievalDatabase:
    root = tmp_path_factory.mktemp("sampling")
    (root / "photos").mkdir()
    for number in range(8):
        (root / "photos" / f"{number}.jpg").write_bytes(encoded(number))
    config = BuildConfig(
        source=f"folder://{root}/photos",
        encoder=tiny_encoder,
        crop=CropConfig(frame_size=40, patch_size=32),
    )
    run_build(DatabaseBuilder(str(root / "db"), config), ComputeConfig(dask="inline"))
    return RetrievalDatabase.open(str(root / "db"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, database: RetrievalDatabase) -> Model:
    return open_model(write_random_model(tmp_path_factory.mktemp("model"), database))
