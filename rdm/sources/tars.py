"""`webdataset:///DIR_OR_TAR`: pictures in WebDataset tars, read in place by offset."""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from rdm.errors import SourceError
from rdm.sources.decode import IMAGE_SUFFIXES
from rdm.sources.file_names import file_below, text_of_name
from rdm.sources.listing import Author, make_listing
from rdm.sources.local import PATH_HINT, LocalSource, RefusedFileError, local_path, read_file
from rdm.sources.tar_members import open_tar, read_sparse, visible_files

logger = logging.getLogger(__name__)
LINK_TO_NOTHING = "link to nothing: its target is not in the tar"  # cause and detail


class WebDatasetSource(LocalSource):
    """The pictures of one tar or of every tar in a folder; the image id is the member's key.

    Tars may number their members alike: the key belongs to the first tar by name, and `TAR/MEMBER` to the others.
    """

    def __init__(self, rest: str) -> None:
        self.root = local_path("webdataset", rest)
        self.spec = f"webdataset://{text_of_name(os.fsencode(self.root))}"
        if not self.root.exists():
            raise SourceError(
                "the WebDataset does not exist",
                where=self.root,
                fix=f"name a .tar file or a folder of them {PATH_HINT}",
            )

    @property
    def tars(self) -> list[Path]:
        """The tar files, sorted by name."""
        return sorted(self.root.glob("*.tar")) if self.root.is_dir() else [self.root]

    def listing(self) -> pa.Table:
        """See Source. A location is `TAR:OFFSET:SIZE`, of a sparse file `TAR:HEADER:SIZE:sparse`.

        What counts is what `tar` would extract, without hidden files: see `tar_members`.
        """
        rows: dict[str, dict[str, str]] = {}
        repeats = []
        for path in self.tars:
            tar = text_of_name(os.fsencode(path.name))
            for picture in _pictures(path):
                key = str(PurePosixPath(picture.name).with_suffix(""))
                row = {"location": f"{tar}:{picture.place}", "etag": picture.etag}
                if key in rows:
                    repeats.append({"image_id": f"{tar}/{picture.name}", **row})
                else:
                    rows[key] = {"image_id": key, **row}
        return make_listing([*rows.values(), *repeats])

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        place = re.fullmatch(r"(.*):(\d+):(\d+)(:sparse)?", location, re.DOTALL)
        if place is None:
            raise RefusedFileError(LINK_TO_NOTHING)
        path = self.root if self.root.is_file() else Path(os.fsdecode(file_below(self.root, Path(place[1]).name)))
        if place[4] is None:
            return read_file(path, limit, start=int(place[2]), size=int(place[3]))
        read_file(path, 0, size=int(place[3]))  # refused where it is too large
        return read_sparse(path, int(place[2]))[:limit]

    def credits(self) -> tuple[Author, ...]:
        """Return nobody: tars carry credits, if any, beside each picture."""
        return ()


@dataclass(frozen=True)
class _Picture:
    """A picture of a tar: its path there, the end of its location, and its etag."""

    name: str
    place: str
    etag: str


def _pictures(path: Path) -> Iterator[_Picture]:
    """Yield the pictures of a tar. The etag of each is its size and time, or without a time those of the tar too."""
    files, status = visible_files(_members(path)), path.stat()
    if replaced := [name for name in files.replaced if _names_picture(name)]:
        message = "%s: members that a later one of the same name replaces, left out: %d, such as %s"
        logger.warning(message, path, len(replaced), replaced[0])
    for name, member in files.members.items():
        if _names_picture(name):
            tar = "" if member.mtime else f"-{status.st_size}-{status.st_mtime_ns}"
            sparse = member.issparse()
            place = f"{member.offset if sparse else member.offset_data}:{member.size}{':sparse' if sparse else ''}"
            yield _Picture(name, place, f"{member.size}-{member.mtime}{tar}")
    yield from (_Picture(name, name, LINK_TO_NOTHING) for name in files.lost if _names_picture(name))


def _names_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        if not path.is_file():
            raise tarfile.ReadError("not a regular file")  # a pipe would be waited for
        with open_tar(path, is_plain=True) as tar:  # compressed ones have no offsets
            members = tar.getmembers()
            # At a damaged header tarfile ends as at the end of the archive, and what follows would vanish in silence.
            with open(path, "rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end of archive after {len(members)} members")
    except (tarfile.TarError, OSError) as error:
        raise SourceError(
            f"the tar is damaged or compressed: {error}", where=path, fix="fetch it again, or unpack it to a plain tar"
        ) from error
    return members
