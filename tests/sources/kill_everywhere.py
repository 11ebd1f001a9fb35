"""Kill the ingestion of a fetched shard before every file that it writes, renames or removes, then finish it.

Arguments: a folder with `list.txt` (URLs that nobody answers) and `round`, what img2dataset left of all of them. A
program of its own, because each kill is one fork of a process that has loaded everything and started no threads.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import rdm.sources.urls  # noqa: F401  loaded before the forks
from rdm.sources import FetchConfig, open_source
from rdm.sources.ingest import IngestTask, ingest_shard
from rdm.storage import Folder

_countdown: list[int] = []


def _kill_when_due(event: str, arguments: tuple[object, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if _countdown and (writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")):
        _countdown[0] -= 1
        if _countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def was_killed(work: Callable[[], object], step: int) -> bool:
    """Run work in a child that is killed before its step-th change of a file; False: it came to its end before."""
    child = os.fork()
    if child == 0:
        _countdown.append(step)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, f"step {step}: the child failed"
    return os.WIFSIGNALED(status)


def contents(root: Path) -> dict[str, bytes]:
    """Return every file, and every folder as one that is empty."""
    return {path.relative_to(root).as_posix(): b"" if path.is_dir() else path.read_bytes() for path in root.rglob("*")}


def main(base: Path) -> None:
    source = open_source(f"urls://{base}/list.txt")
    rows = tuple(source.listing().to_pylist())

    def start(name: str) -> IngestTask:
        task = IngestTask(Folder(base / name), "00000", source.spec, rows, FetchConfig(attempts=1))
        shutil.copytree(base / "round", task.scratch / "round-0")
        return task

    undisturbed = start("reference")
    ingest_shard(undisturbed)
    expected, steps = contents(base / "reference"), 0
    sys.addaudithook(_kill_when_due)
    while True:
        task = start("db")
        steps += 1
        if not was_killed(lambda task=task: ingest_shard(task), steps):
            break
        ingest_shard(task)
        found = {name: data for name, data in contents(base / "db").items() if not name.endswith(".tmp")}
        differing = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
        assert not differing, f"step {steps}: {differing} differ"
        shutil.rmtree(base / "db")
    sys.stdout.write(f"{steps - 1}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
