"""Kill work before any change that it makes to a file: for programs that fork, with one thread and
all loaded."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping

_CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir")
_countdown: list[int] = []


def watch_changes() -> None:
    """Count this program's changes of files from now on, in children of `was_killed` alone."""
    sys.addaudithook(_kill_when_due)


def was_killed(work: Callable[[], object], step: int) -> bool:
    """Run work in a child that is killed before its step-th change of a file; False: it came to its
    end before."""
    child = os.fork()
    if child == 0:
        _countdown.append(step)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, (
        f"step {step}: the child failed"
    )
    return os.WIFSIGNALED(status)


def assert_same(found: Mapping[str, bytes], expected: Mapping[str, bytes], step: int) -> None:
    """Compare the contents of folders by name; name what differs."""
    differing = [
        name
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    assert not differing, f"step {step}: {differing} differ"


def _kill_when_due(event: str, arguments: tuple[object, ...]) -> None:
    writes = (
        event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    )
    if _countdown and (writes or event in _CHANGES):
        _countdown[0] -= 1
        if _countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
