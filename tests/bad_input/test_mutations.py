"""Damaged pictures, tars, lists and database files: an error or a ledger row for each, in bounded
time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import BuildConfig, DatabaseBuilder, NeighborConfig, build_neighbors
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.sources import CropConfig, QuerySetConfig

INLINE = ComputeConfig(dask="inline")
CROP = CropConfig(frame_size=40, patch_size=24)


def run(program: str, *arguments: object) -> list[Any]:
    """Run a program of this folder; return what it prints, line by line."""
    environment: Mapping[str, str] = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def changed_database(tmp_path: Path, tiny_encoder: str, encoded: Callable[..., bytes]) -> Path:
    """A database of four versions with two neighbor tables, whose source has changed since."""
    weights = Path(tiny_encoder.removeprefix("open_clip:tiny-clip/"))
    (tmp_path / "tiny-clip.json").write_bytes((weights.parent / "tiny-clip.json").read_bytes())
    for folder, numbers in (("photos", range(6)), ("queries", range(100, 104))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            (tmp_path / folder / f"p{number:02d}.jpg").write_bytes(encoded(number))
    root = tmp_path / "db"
    config = BuildConfig(
        source=f"folder://{tmp_path}/photos", encoder=tiny_encoder, images_per_shard=3, crop=CROP
    )
    run_build(DatabaseBuilder(str(root), config), INLINE)
    queries = QuerySetConfig(source=f"folder://{tmp_path}/queries", crop=CROP, images_per_shard=2)
    with compute_pool(INLINE) as pool:
        for name, exact in (("exact", True), ("fast", False)):
            build_neighbors(
                str(root), name, NeighborConfig(queries=queries, k_stored=5, exact=exact), pool
            )
    (tmp_path / "photos" / "p06.jpg").write_bytes(encoded(6))
    run_build(update_builder(str(root), Removal(frozenset(["p01.jpg"]))), INLINE)
    (tmp_path / "photos" / "p07.jpg").write_bytes(encoded(7))
    return root


COUNTS = [
    pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]),
]


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_sources_give_a_ledger_row_or_an_error(tmp_path: Path, count: int) -> None:
    outcomes = dict(run("mutate_sources.py", tmp_path, count, 0))
    assert len(outcomes) == 6
    assert sum(outcomes["pictures"].values()) == count
    assert outcomes["pictures"]["broken picture"] > count / 5
    assert not any("refused without a place" in outcome for outcome in outcomes.values())
    # Nearly every text is a list of something: its damaged lines fail when they are fetched.
    lists = {
        name: outcome for name, outcome in outcomes.items() if name not in ("pictures", "list.txt")
    }
    assert all(outcome["refused"] > count / 5 for outcome in lists.values())
    assert outcomes["list.txt"]["refused"] > 0


@pytest.mark.parametrize("count", [pytest.param(3 * p.values[0], marks=p.marks) for p in COUNTS])  # type: ignore[operator]
def test_damaged_database_files_give_an_error_and_are_named_by_verify(
    changed_database: Path, count: int
) -> None:
    (found,) = run("mutate_database.py", changed_database, count, 0)
    assert found["cases"] == count
    parts = [
        "patches/*.parquet",
        "img_emb/*.npy",
        "images/*.parquet",
        "images/*.tar",
        "metadata/*.parquet",
    ]
    assert all(found["outcomes"][kind]["verify: found"] > 0 for kind in parts)
