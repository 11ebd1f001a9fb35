"""Kill a build and an update before every file that they open for writing or rename, then finish them.

Arguments: a folder with `photos`, `more` (what the update adds) and `tiny-clip.json`; the encoder's name. A program of
its own, because each kill is one fork of a process that has loaded everything and started no threads.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import autofaiss  # noqa: F401  loaded before the forks
import numpy as np
import open_clip
import torch

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.changes import Removal
from rdm.database.jobs import run_build, update_builder
from rdm.encoders import load_encoder
from rdm.sources import CropConfig
from rdm.storage import Folder, VersionStore

INLINE = ComputeConfig(dask="inline")
REMOVAL = Removal(frozenset(["p01.jpg"]))
_countdown: list[int] = []


def _kill_when_due(event: str, arguments: tuple[object, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if _countdown and (writes or event == "os.rename"):
        _countdown[0] -= 1
        if _countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def was_killed(work: Callable[[], object], step: int) -> bool:
    """Run work in a child that is killed before its step-th write; False: it came to its end before."""
    child = os.fork()
    if child == 0:
        _countdown.append(step)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, f"step {step}: the child failed"
    return os.WIFSIGNALED(status)


def contents(root: Path) -> dict[str, bytes]:
    """Return every file but the lock."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".writer.lock"
    }


def assert_same(root: Path, expected: dict[str, bytes], step: int) -> None:
    found = contents(root)
    differing = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    assert not differing, f"step {step}: {differing} differ"


def main(base: Path, encoder: str) -> None:
    torch.set_num_threads(1)
    open_clip.add_model_config(base / "tiny-clip.json")
    load_encoder(encoder)
    sys.addaudithook(_kill_when_due)
    config = BuildConfig(
        source=f"folder://{base}/photos",
        encoder=encoder,
        images_per_shard=3,
        crop=CropConfig(frame_size=40, patch_size=24),
    )

    def build(root: Path) -> None:
        run_build(DatabaseBuilder(str(root), config), INLINE)

    build(base / "reference")
    expected, steps, root = contents(base / "reference"), 0, base / "db"
    while was_killed(lambda: build(root), steps := steps + 1):
        assert VersionStore(Folder(root)).current() is None or contents(root).keys() >= expected.keys()
        build(root)
        assert_same(root, expected, steps)
        shutil.rmtree(root)
    sys.stdout.write(f"{steps - 1} ")

    first, steps = base / "reference", 0
    for path in (base / "more").iterdir():
        shutil.copy(path, base / "photos")
    (base / "photos" / "p00.jpg").unlink()
    shutil.copytree(first, base / "updated")
    run_build(update_builder(str(base / "updated"), REMOVAL), INLINE)
    expected, old = contents(base / "updated"), RetrievalDatabase.open(str(first))
    queries = np.asarray(old.parts[0][1][:3])
    neighbors = old.search_vectors(queries, 5)[0]
    shutil.rmtree(root, ignore_errors=True)
    while True:
        shutil.copytree(first, root)
        if not was_killed(lambda: run_build(update_builder(str(root), REMOVAL), INLINE), steps := steps + 1):
            break
        survivor = RetrievalDatabase.open(str(root))
        assert survivor.version.number == 2 or np.array_equal(survivor.search_vectors(queries, 5)[0], neighbors), steps
        run_build(update_builder(str(root), REMOVAL), INLINE)
        assert_same(root, expected, steps)
        shutil.rmtree(root)
    sys.stdout.write(f"{steps - 1}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
