"""A database of eight photographs, and a model of random weights that draws from it in
milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
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


@pytest.fixture(scope="session")
def credited(
    tmp_path_factory: pytest.TempPathFactory, database: RetrievalDatabase
) -> RetrievalDatabase:
    """The same patches, each photograph with an author and a license of its own or another's."""
    folder = tmp_path_factory.mktemp("credited") / "db"
    shutil.copytree(database.folder.local(""), folder)
    for path in (folder / "metadata").glob("*.parquet"):
        table = pq.read_table(path)
        authors = [f"author {ord(name[0]) % 2}" for name in _names(table)]
        licenses = ["CC BY 2.0" if name == "3.jpg" else "CC0" for name in _names(table)]
        for column, values in (("author", authors), ("license", licenses)):
            place = table.column_names.index(column)
            table = table.set_column(place, column, pa.array(values, table.field(column).type))
        pq.write_table(table, path)
    return RetrievalDatabase.open(str(folder))


def _names(table: pa.Table) -> list[str]:
    return [str(name) for name in table.column("image_id").to_pylist()]


@pytest.fixture(scope="session")
def other(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], tiny_encoder: str
) -> RetrievalDatabase:
    """A database of the same encoder and four other photographs."""
    root = tmp_path_factory.mktemp("other")
    (root / "photos").mkdir()
    for number in range(4):
        (root / "photos" / f"o{number}.jpg").write_bytes(encoded(100 + number))
    config = BuildConfig(
        source=f"folder://{root}/photos",
        encoder=tiny_encoder,
        crop=CropConfig(frame_size=40, patch_size=32),
    )
    run_build(DatabaseBuilder(str(root / "db"), config), ComputeConfig(dask="inline"))
    return RetrievalDatabase.open(str(root / "db"))
