"""Kill the ingestion of a fetched shard before every file that it writes, renames or removes, then
finish it.

Arguments: a folder with `list.txt` (URLs that nobody answers) and `round`, what img2dataset left of
    all of them. A program of its own, because each kill is one fork of a process that has loaded
    everything and started no threads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from file_kills import assert_same, was_killed, watch_changes

import rdm.sources.kinds.url_list  # noqa: F401  loaded before the forks
from rdm.sources import FetchConfig, open_source
from rdm.sources.ingest import IngestTask, ingest_shard
from rdm.storage import Folder


def contents(root: Path) -> dict[str, bytes]:
    """Return every file, and every folder as one that is empty."""
    return {
        path.relative_to(root).as_posix(): b"" if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }


def main(base: Path) -> None:
    source = open_source(f"urls://{base}/list.txt")
    listing = source.listing()

    def start(name: str) -> IngestTask:
        task = IngestTask(
            Folder(base / name), "00000", source.spec, listing, FetchConfig(attempts=1)
        )
        shutil.copytree(base / "round", task.scratch / "round-0")
        return task

    undisturbed = start("reference")
    ingest_shard(undisturbed)
    expected, steps = contents(base / "reference"), 0
    watch_changes()
    while True:
        task = start("db")
        steps += 1
        if not was_killed(lambda task=task: ingest_shard(task), steps):
            break
        ingest_shard(task)
        found = {
            name: data for name, data in contents(base / "db").items() if not name.endswith(".tmp")
        }
        assert_same(found, expected, steps)
        shutil.rmtree(base / "db")
    sys.stdout.write(f"{steps - 1}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
