"""`folder:///DIR`: the picture files of a directory tree."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pyarrow as pa

from rdm.errors import SourceError
from rdm.sources.captions import MAX_CAPTION_BYTES, captions_of_text
from rdm.sources.file_names import file_below, is_hidden, text_of_name
from rdm.sources.kinds.local import (
    LINKED_FOLDER,
    PATH_HINT,
    LocalSource,
    RefusedFileError,
    local_path,
    read_file,
)
from rdm.sources.source import Author, make_listing, names_picture


class FolderSource(LocalSource):
    """Every file below a directory; the image id is the path relative to it.

    Other files are listed, too, and so are links to folders, which are not followed: the ledger
    then has a row that says so.
    """

    def __init__(self, rest: str) -> None:
        self.root = local_path("folder", rest)
        self.spec = f"folder://{text_of_name(os.fsencode(self.root))}"

        if not self.root.is_dir():
            is_file = self.root.exists()
            raise SourceError(
                "this is a file, not a folder" if is_file else "the folder does not exist",
                where=self.root,
                fix=f"check the path after folder:// {PATH_HINT}; a tar is webdataset://, a list "
                "urls://",
            )

    def listing(self) -> pa.Table:
        """See Source. Hidden files and folders are left out; a linked folder ends with a slash.

        Raises:
            SourceError: a folder cannot be read. Its photographs must not seem to have vanished.
        """
        rows = []
        for directory, folders, names in os.walk(self.root, onerror=_raise_unreadable):
            # `os.walk` enters the folders that are left in this list.
            folders[:] = sorted(name for name in folders if not is_hidden(name))

            for path in (Path(directory, name) for name in names if not is_hidden(name)):
                relative = text_of_name(os.fsencode(path.relative_to(self.root)))
                rows.append({"image_id": relative, "location": relative, "etag": _etag(path)})

            for path in (Path(directory, name) for name in folders):
                if path.is_symlink():
                    relative = text_of_name(os.fsencode(path.relative_to(self.root)))
                    rows.append(
                        {"image_id": relative, "location": f"{relative}/", "etag": LINKED_FOLDER}
                    )
        return make_listing(rows)

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        path = Path(os.fsdecode(file_below(self.root, location)))
        # `Path.resolve` raises where links lead in a circle.
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_relative_to(os.path.realpath(self.root)):
            raise RefusedFileError(f"leads out of the folder: {location}")
        return read_file(path, limit)

    def class_names(self) -> dict[str, str]:
        """Return the class of each picture that has one, by location: its folder below the root."""
        pictures = filter(names_picture, self.listing()["location"].to_pylist())
        return {place: place.partition("/")[0] for place in pictures if "/" in place}

    def captions(self) -> dict[str, tuple[str, ...]]:
        """Return the captions of pictures, by location: the lines of `PHOTO.txt`.

        Raises:
            SourceError: such a file cannot be read, is too long or not UTF-8.
        """
        found: dict[str, tuple[str, ...]] = {}
        for location in self.listing()["location"].to_pylist():
            beside = str(PurePosixPath(location).with_suffix(".txt"))
            path = Path(os.fsdecode(file_below(self.root, beside)))
            if not names_picture(location) or not path.is_file():
                continue

            try:
                data = self.read(beside, MAX_CAPTION_BYTES + 1)
            except OSError as error:
                raise SourceError(
                    f"captions cannot be read: {error.strerror or error}",
                    where=path,
                    fix="mend the file, or remove it",
                ) from error

            if captions := captions_of_text(data, str(path)):
                found[location] = captions
        return found

    def credits(self) -> tuple[Author, ...]:
        """Return nobody: a folder does not say who made its pictures."""
        return ()


def _raise_unreadable(error: OSError) -> None:
    raise SourceError(
        f"a folder cannot be read: {error.strerror}",
        where=error.filename,
        fix="mend its permissions or its disk",
    ) from error


def _etag(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a link to nothing: reading it says so in the ledger
        return "unreadable"
    return f"{status.st_size}-{status.st_mtime_ns}"
