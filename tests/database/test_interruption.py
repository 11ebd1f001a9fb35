from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.database.building.results import BuildResult
from rdm.errors import StorageError
from rdm.sources import CropConfig


@pytest.fixture
def killed(
    tmp_path: Path, tiny_encoder: str, encoded: Callable[..., bytes]
) -> Callable[..., list[str]]:
    """Return a function that runs a program of this folder that kills writers, and returns the
    lines it prints."""
    for folder, numbers in (
        ("photos", range(6)),
        ("more", range(6, 9)),
        ("queries", (7, 100, 101, 102)),
    ):
        (tmp_path / folder).mkdir()
        for number in numbers:
            (tmp_path / folder / f"p{number:02d}.jpg").write_bytes(encoded(number))
    weights = Path(tiny_encoder.removeprefix("open_clip:tiny-clip/"))
    (tmp_path / "tiny-clip.json").write_bytes((weights.parent / "tiny-clip.json").read_bytes())

    def run(program: str, *arguments: object) -> list[str]:
        script = Path(__file__).with_name(program)
        paths = os.pathsep.join(
            [str(script.parents[1]), str(script.parent), os.environ.get("PYTHONPATH", "")]
        )
        result = subprocess.run(
            [sys.executable, script, tmp_path, tiny_encoder, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": paths},
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout.splitlines()

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_exports_and_imports_killed_before_any_change_finish_with_equal_bytes(
    killed: Callable[..., list[str]],
) -> None:
    assert min(map(int, " ".join(killed("kill_exchange.py")).split())) > 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_build_update_and_compaction_killed_before_any_change_finish_with_equal_bytes(
    killed: Callable[..., list[str]],
) -> None:
    build_kills, update_kills, compaction_kills = map(int, killed("kill_everywhere.py")[0].split())
    assert build_kills > 40
    assert update_kills > 60
    assert compaction_kills > 40


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("count", [24, pytest.param(225, marks=pytest.mark.long)])
def test_writers_and_workers_killed_at_random_moments_finish_with_equal_bytes(
    killed: Callable[..., list[str]], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.split() for line in killed("kill_at_random.py", count, 0)]
    kills = {name: (int(writer), int(worker)) for name, writer, worker in lines}
    assert list(kills) == ["build", "update", "compact"]
    assert all(sum(counts) == count // 3 for counts in kills.values())
    assert sum(worker for _, worker in kills.values()) > 0
    with capsys.disabled():
        for name, (writer, worker) in kills.items():
            sys.stdout.write(f"{name}: {writer} kills of the writer, {worker} of a worker\n")


@pytest.mark.slow
@pytest.mark.long
def test_build_on_a_full_disk_resumes_when_there_is_space(
    photos: Path,
    tmp_path: Path,
    tiny_encoder: str,
    small_disk: Callable[[int], Path],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    config = BuildConfig(
        source=f"folder://{photos}",
        encoder=tiny_encoder,
        images_per_shard=2,
        crop=CropConfig(frame_size=40, patch_size=24),
    )

    def build(root: Path) -> BuildResult:
        return run_build(DatabaseBuilder(str(root), config), ComputeConfig(dask="inline"))

    build(tmp_path / "reference")
    size, messages = 40, []
    while True:
        root = small_disk(size) / "db"
        try:
            build(root)
            break
        except StorageError as error:
            messages.append(error.what)
            assert not list(root.rglob("*.tmp"))
            size += 20
    assert len(messages) > 5
    assert all("full" in message or "cannot be written" in message for message in messages)
    assert contents(root) == contents(tmp_path / "reference")
