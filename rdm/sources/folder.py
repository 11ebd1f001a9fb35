"""`folder:///DIR`: the picture files of a directory tree."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from rdm.errors import SourceError
from rdm.sources.listing import Author, make_listing
from rdm.sources.local import LocalSource


class FolderSource(LocalSource):
    """Every file below a directory; the image id is the path relative to it.

    Files that are not pictures are listed too: the ledger then has a row that says so.
    """

    def __init__(self, rest: str) -> None:
        self.root = Path(os.path.expanduser(rest))
        self.spec = f"folder://{rest}"
        if not self.root.is_dir():
            raise SourceError(
                "the folder does not exist" if not self.root.exists() else "this is a file, not a folder",
                where=self.root,
                fix="check the path after folder:// (an absolute path has three slashes)",
            )

    def listing(self) -> pa.Table:
        """See Source. Hidden files and folders are left out."""
        rows = []
        for directory, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if not name.startswith("."):
                    path = Path(directory) / name
                    relative = _printable(path.relative_to(self.root))
                    rows.append({"image_id": relative, "location": relative, "etag": _etag(path)})
        return make_listing(rows)

    def read(self, location: str) -> bytes:
        """See Source."""
        path = (self.root / location).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise OSError(f"{location} leads out of {self.root}")
        return path.read_bytes()

    def credits(self) -> tuple[Author, ...]:
        """Return nobody: a folder does not say who made its pictures."""
        return ()


def _etag(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a link to nothing: reading it will say so in the ledger
        return "unreadable"
    return f"{status.st_size}-{status.st_mtime_ns}"


def _printable(path: Path) -> str:
    # Tables hold UTF-8. A name that is not gets escapes, under which it cannot be read: the ledger has a row for it.
    return os.fsencode(path).decode("utf-8", "backslashreplace")
