"""The command line, called in this process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rdm.cli.main import run
from rdm.compute import ComputeConfig
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.sources import CropConfig

Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def rdm(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `rdm(*arguments)`: the exit code of `rdm ... --json`, its result, and its standard
    error on one line."""

    def call(*arguments: object) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = run([*(str(argument) for argument in arguments), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, " ".join(err.split())

    return call


@pytest.fixture
def rdm_database(rdm: Command) -> Command:
    """Return `rdm_database(*arguments)`: likewise of `rdm database ... --json`."""
    return partial(rdm, "database")


@pytest.fixture(scope="session")
def built_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the database that tests copy; its source is the link `photos` beside it."""
    return tmp_path_factory.mktemp("base")


@pytest.fixture
def root(built_base: Path, photos: Path, tmp_path: Path, tiny_encoder: str) -> Path:
    """A database of twelve photographs, those of `photos`; it is built once and copied."""
    link, database = built_base / "photos", built_base / "db"
    link.unlink(missing_ok=True)
    link.symlink_to(photos)
    for path in photos.iterdir():
        os.utime(path, (1e9, 1e9))  # as when the database was built
    if not database.exists():
        config = BuildConfig(
            source=f"folder://{link}",
            encoder=tiny_encoder,
            crop=CropConfig(frame_size=40, patch_size=24),
            images_per_shard=5,
        )
        run_build(DatabaseBuilder(str(database), config), ComputeConfig(dask="inline"))
    return shutil.copytree(database, tmp_path / "db")
