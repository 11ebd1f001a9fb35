"""The base of sources whose photographs are files at hand."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdm.errors import RdmError, UsageError
from rdm.sources.causes import CANNOT_BE_READ
from rdm.sources.fetching.fetched import Shelf
from rdm.sources.file_names import file_below, text_of_path
from rdm.sources.http.client import FetchConfig
from rdm.sources.ledger import FAILED, SKIPPED, Row, examined, unusable_row
from rdm.sources.source import names_picture
from rdm.storage.files import absolute_path

MAX_BYTES = 500_000_000  # a picture at the limit of pixels has 480 MB without compression
PATH_HINT = "(an absolute path has three slashes)"
LINKED_FOLDER = "linked folder"  # cause


class RefusedFileError(OSError):
    """A file that is not read, whatever it holds: `cause: detail`, and its ledger row's status."""

    def __init__(self, message: str, status: str = FAILED) -> None:
        self.status = status
        super().__init__(message)


def local_path(scheme: str, rest: str) -> Path:
    """Return the absolute path that a specification `SCHEME://REST` names.

    Raises:
        UsageError: it names none.
    """
    if not rest:
        raise UsageError(
            f"{scheme}:// names no path",
            fix=f"{scheme}:///PATH (an absolute path has three slashes)",
        )
    return Path(os.fsdecode(file_below("/", text_of_path(absolute_path(rest)))))


def read_file(
    path: Path, limit: int | None = None, *, start: int = 0, size: int | None = None
) -> bytes:
    """Return the bytes of a file, or of a part of it; the first `limit` of them.

    Raises:
        RefusedFileError: it is no regular file (a pipe would never end), or over MAX_BYTES.
        OSError: it cannot be read.
    """
    # A link to nothing says so; a missing file is another cause.
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "the link leads to nothing", str(path)) from None
        raise

    # Opening a pipe would wait for a writer, and a device may never end.
    if not stat.S_ISREG(status.st_mode):
        raise RefusedFileError("not a regular file", SKIPPED)
    size = status.st_size if size is None else size
    if size > MAX_BYTES:
        raise RefusedFileError(f"too large: over {MAX_BYTES} bytes")

    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size if limit is None else min(size, limit))


class LocalSource(ABC):
    """A source that reads one photograph after another."""

    @abstractmethod
    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""

    def take(
        self, entries: Sequence[Row], scratch: Path, fetch: FetchConfig
    ) -> Iterator[tuple[Row, bytes]]:
        """See Source. Photographs that an earlier run has stored are not read again."""
        del fetch
        shelf = Shelf(scratch)
        return (
            shelf.get(number) if shelf.has(number) else self._take_one(entry)
            for number, entry in enumerate(entries)
        )

    def _take_one(self, entry: Row) -> tuple[Row, bytes]:
        """Return one photograph's ledger row and bytes; a failure becomes a row, never an error."""
        location = entry["location"]
        # A linked folder: see `FolderSource.listing`.
        if location.endswith("/"):
            message = f"{LINKED_FOLDER}: name its target as a source of its own"
            return unusable_row(entry, message, SKIPPED), b""

        if not names_picture(location):
            return unusable_row(entry, "not a picture by its name", SKIPPED), b""

        try:
            data = self.read(location)
        except RefusedFileError as error:
            return unusable_row(entry, str(error), error.status), b""
        except OSError as error:
            return unusable_row(entry, f"{CANNOT_BE_READ}: {error.strerror or error}"), b""
        except RdmError:
            raise
        except Exception as error:
            # Whatever it is, it is one photograph's, and no reason to lose the others.
            return unusable_row(entry, f"{CANNOT_BE_READ}: {type(error).__name__}: {error}"), b""

        return examined(entry, data, location)
