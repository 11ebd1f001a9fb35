"""The command line, called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rdm.cli.main import run

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


@pytest.fixture
def root(rdm_database: Command, photos: Path, tmp_path: Path, tiny_encoder: str) -> Path:
    """A database of twelve photographs."""
    settings = (
        f"encoder={tiny_encoder}",
        "crop.frame_size=40",
        "crop.patch_size=24",
        "images_per_shard=5",
    )
    options = [word for setting in settings for word in ("--set", setting)]
    root = tmp_path / "db"
    assert (
        rdm_database(
            "build", "--root", root, "--source", f"folder://{photos}", "--dask", "inline", *options
        )[0]
        == 0
    )
    return root
