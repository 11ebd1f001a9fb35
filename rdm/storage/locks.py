"""One writer at a time: a lock file that is free when its holder ends, however it ended."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rdm.errors import ConcurrentWriterError
from rdm.storage.atomic import storage_errors

ATTEMPTS = 20  # to take a lock, since a look by `is_locked` holds it for microseconds
ATTEMPT_SECONDS = 0.01


def lock_file(path: Path, activity: str) -> TextIO:
    """Return the locked file; closing it frees the lock.

    Args:
        path: the lock file, created where it is missing.
        activity: the holder's activity, for the error of others: `is writing this database`.

    Raises:
        ConcurrentWriterError: another process holds it.
    """
    with storage_errors(path):
        lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115  the caller closes it
        try:
            _take(lock)
        except BlockingIOError as error:
            # The holder has written its name into the file.
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise ConcurrentWriterError(
                f"{holder} {activity}",
                where=path.parent,
                fix="wait for it to finish, then run the same command again",
            ) from error

        # From now on this process is the holder.
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
    return lock


def _take(lock: TextIO) -> None:
    """Take the lock, or raise BlockingIOError if it stays with another."""
    # A look by `is_locked` shares the lock for a moment, which is no reason to give up.
    for _ in range(ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(ATTEMPT_SECONDS)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Return whether a process on this machine, or on one that mounts the folder, holds a lock."""
    try:
        with open(path, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
