"""Small tars of labelled pictures, and a model of random weights that draws in milliseconds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from random_model import write_random_model

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.sources import CropConfig


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write files into a tar."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def labelled_tar(encoded: Callable[..., bytes]) -> Callable[..., Path]:
    """Return a maker of tars with so many pictures of each class: `labelled_tar(path, [4, 4])`."""

    def make(path: Path, counts: list[int], first: int = 0) -> Path:
        members: dict[str, bytes] = {}
        for label, count in enumerate(counts):
            for number in range(count):
                key = f"c{label}-{first + number:02d}"
                members[f"{key}.jpg"] = encoded(100 * label + first + number, size=(40, 32))
                members[f"{key}.cls"] = str(label).encode()
        return write_tar(path, members)

    return make


@pytest.fixture
def classes_file(tmp_path: Path) -> Path:
    """Two of ImageNet's classes."""
    path = tmp_path / "classes.json"
    rows = [("n01443537", "goldfish"), ("n09193705", "alp")]
    path.write_text(
        json.dumps(
            [
                {"label": label, "wnid": wnid, "name": name}
                for label, (wnid, name) in enumerate(rows)
            ]
        )
    )
    return path


@pytest.fixture(scope="session")
def whole_database(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], tiny_encoder: str
) -> RetrievalDatabase:
    """A database of four whole photographs, those of the folder `photos` beside it."""
    root = tmp_path_factory.mktemp("whole")
    (root / "photos").mkdir()
    for number in range(4):
        (root / "photos" / f"{number}.jpg").write_bytes(encoded(number))
    source = f"folder://{root}/photos"
    config = BuildConfig(source=source, encoder=tiny_encoder, crop=CropConfig(mode="whole"))
    run_build(DatabaseBuilder(str(root / "db"), config), ComputeConfig(dask="inline"))
    return RetrievalDatabase.open(str(root / "db"))


@pytest.fixture(scope="session")
def random_model(
    tmp_path_factory: pytest.TempPathFactory, whole_database: RetrievalDatabase
) -> Path:
    """The folder of an RDM of 32 px pictures."""
    return write_random_model(tmp_path_factory.mktemp("model") / "model", whole_database)
