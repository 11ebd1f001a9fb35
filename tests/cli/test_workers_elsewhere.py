"""Commands with --dask whose scheduler and workers were started in other folders, or on machines
with other disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rdm.cli.main import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SETTINGS = {
    "crop": {"frame_size": 40, "patch_size": 24},
    "images_per_shard": 5,
    "source": "folder://overridden",
}
Started = Callable[..., str]


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, "it ended before it was ready"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Return `started(*prefix)`: the address of a scheduler with a worker, in folders of their own.

    The prefix stands before the worker's command.
    """
    processes: list[subprocess.Popen[bytes]] = []
    # The test's own folder comes first in the path of a module that is run.
    environment = {**os.environ, "DASK_DISTRIBUTED__DASHBOARD__LINK": ""}

    def start(*prefix: str) -> str:
        file = tmp_path / "scheduler.json"
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        scheduler = [
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(file),
        ]
        worker = [
            "worker",
            "--scheduler-file",
            str(file),
            "--name",
            "far",
            "--nthreads",
            "1",
            "--no-dashboard",
        ]
        for place, words in (("a", scheduler), ("b", [*worker, "--no-nanny"])):
            own = prefix if place == "b" else ()
            processes.append(
                subprocess.Popen(
                    [*own, sys.executable, "-m", "dask", *words],
                    cwd=tmp_path / place,
                    env=environment,
                    stderr=subprocess.DEVNULL,
                )
            )
            if place == "a":
                _wait_for(file, processes[-1])
        return json.loads(file.read_text())["address"]

    yield start
    for process in reversed(processes):
        process.terminate()
        process.wait(30)


def test_relative_names_are_meant_from_where_the_command_runs(
    started: Started,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = started()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    shutil.copytree("photos", "queries")

    def rdm(*words: str) -> dict[str, object]:
        code = run([*words, "--dask", address, "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    source = ("--source", "folder://photos", "--config", "settings.json")
    assert rdm("database", "build", "--root", "ext", *source)["photographs"] == 12
    (photos / "p00.jpg").unlink()
    assert rdm("database", "update", "--root", "ext")["photographs"] == 11
    crop = ("--set", "queries.crop.frame_size=32", "--set", "queries.crop.patch_size=32")
    queries = ("--queries", "folder://queries", *crop)
    assert (
        rdm("neighbors", "build", "--root", "ext", "--name", "q", *queries, "--set", "k_stored=4")[
            "queries"
        ]
        == 12
    )
    cache = (
        "cache",
        "build",
        "--out",
        "latents",
        "--inline-neighbors",
        "ext",
        "--set",
        "resolution=32",
    )
    assert rdm(*cache, *queries)["latents"] == 24

    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == []
    assert (tmp_path / "ext" / "images" / "00000.parquet").is_file()
    assert (tmp_path / "latents" / "cache.json").is_file()


@pytest.mark.parametrize(("hidden", "where"), [("disk", "disk/ext"), ("photos", "photos")])
def test_a_path_that_a_worker_does_not_see_is_told_with_its_name(
    started: Started,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hidden: str,
    where: str,
) -> None:
    (tmp_path / "disk").mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")
    script = (
        f"mount -t tmpfs none {tmp_path}/{hidden} && rmdir {tmp_path}/{hidden} "
        '2>/dev/null; exec "$@"'
    )
    # a folder cannot be made to vanish by a mount: its parent is another one there
    if hidden == "photos":
        (tmp_path / "real").mkdir()
        photos = photos.rename(tmp_path / "real" / "photos")
        script = f'mount -t tmpfs none {tmp_path}/real && exec "$@"'
        where = "real/photos"
    address = started("unshare", "-m", "sh", "-c", script, "sh")
    root = tmp_path / "disk" / "ext"
    code = run(
        [
            "database",
            "build",
            "--root",
            str(root),
            "--source",
            f"folder://{photos}",
            "--dask",
            address,
        ]
    )
    told = capsys.readouterr().err
    assert code == 1
    lines = [
        line for line in told.splitlines() if line.startswith(("error:", "  where:", "  fix:"))
    ]
    assert [line.split(":")[0].strip() for line in lines] == ["error", "where", "fix"]
    assert "the Dask worker far does not see a path of this job" in lines[0]
    assert lines[1].endswith(f"{tmp_path}/{where}")
    assert list(root.glob(".workers*")) == []
