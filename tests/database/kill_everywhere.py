"""Kill a build, an update and a compaction before every write, rename, link and deletion of a file,
then finish them.

Arguments: a folder as `killed_work.works` wants it; the encoder's name. A program of its own,
    because each kill is one fork of a process that has loaded everything and started no threads.
    Prints the number of kills in each of the three.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from file_kills import was_killed, watch_changes
from killed_work import INLINE, Work, works


def kill_everywhere(work: Work, root: Path) -> int:
    """Kill a job on copies of its folder before each change that it makes, and finish it; return
    how many kills.

    After each kill, what stands is searched: it is the old version or the new one, whole.
    """
    steps = 0
    while True:
        steps += 1
        work.prepare(root)
        if not was_killed(lambda: work.run(root, INLINE), steps):
            shutil.rmtree(root)
            return steps - 1
        work.check_survivor(root, steps)
        work.run(root, INLINE)
        work.check_finished(root, steps)


def main(base: Path, encoder: str) -> None:
    watch_changes()
    kills = [kill_everywhere(work, base / "db") for work in works(base, encoder)]
    sys.stdout.write(" ".join(map(str, kills)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
