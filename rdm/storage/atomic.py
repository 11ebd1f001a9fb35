"""Writes that are whole or absent, and failed reads and writes as errors that say what to do."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rdm.errors import StorageError

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on leaving, flush it and rename it into place.

    Raises:
        StorageError: the disk is full or the directory cannot be written; the old file then still
            stands.
    """
    # In the same folder, since a rename is atomic within one disk only.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            # Flushed first: a rename may reach the disk before the contents do.
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def storage_errors(where: object) -> Iterator[None]:
    """Turn a full disk, a missing permission or a read-only disk into a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                "the disk is full; nothing that was complete is lost",
                where=where,
                fix="free space and run the same command again: it resumes",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"cannot write here: {error.strerror}",
                where=where,
                fix="choose a folder that you may write",
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise StorageError(
                f"a file and a folder are in each other's place: {error.strerror}",
                where=where,
                fix="choose another folder",
            ) from error
        raise


def read_error(error: Exception, where: object) -> StorageError:
    """Return the StorageError for a failed read."""
    if isinstance(error, FileNotFoundError):
        return StorageError(
            "a file is missing", where=where, fix="run `rdm database verify`, or build again"
        )
    return StorageError(
        f"a file cannot be read: {error}", where=where, fix="run `rdm database verify`"
    )
