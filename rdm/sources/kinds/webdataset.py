"""`webdataset:///DIR_OR_TAR_OR_PATTERN`: pictures in WebDataset tars, read in place by offset."""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pyarrow as pa

from rdm.errors import SourceError
from rdm.sources.file_names import file_below, text_of_name
from rdm.sources.kinds.local import PATH_HINT, LocalSource, RefusedFileError, local_path, read_file
from rdm.sources.kinds.tar_labels import Members, class_labels, key_of, tar_captions
from rdm.sources.patterns import (
    check_finished,
    count_suffixes,
    expand_pattern,
    files_below,
    fixed_part,
)
from rdm.sources.photographs.decode import IMAGE_SUFFIXES
from rdm.sources.source import Author, make_listing
from rdm.sources.tar_members import TarFiles, open_tar, read_sparse, visible_files

logger = logging.getLogger(__name__)
LINK_TO_NOTHING = "link to nothing: its target is not in the tar"  # cause and detail
_Said = TypeVar("_Said")
_COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


class WebDatasetSource(LocalSource):
    """The pictures of one tar, of all tars in a folder and below, or of a pattern's tars.

    The image id is the member's key. Tars may number their members alike: the key belongs to the
    first tar by name, those of folders below last, and `TAR/MEMBER` to the others.
    """

    def __init__(self, rest: str) -> None:
        self.path = local_path("webdataset", rest)
        self.spec = f"webdataset://{text_of_name(os.fsencode(self.path))}"
        self._is_pattern = not self.path.exists()
        self.root = fixed_part(str(self.path)) if self._is_pattern else self.path
        if self._is_pattern and not self.tars:
            raise SourceError(
                "the WebDataset does not exist",
                where=self.path,
                fix=f"name a .tar file, a folder of them or a pattern such as "
                f"{{000..003}}.tar {PATH_HINT}",
            )

    @property
    def tars(self) -> list[Path]:
        """The tar files, sorted by name, those of folders below last.

        Raises:
            SourceError: a pattern names tars that do not exist.
        """
        # Tars in the folder itself come first, so that their keys stay the ids.
        if self.root.is_file():
            return [self.root]
        found = self._named() if self._is_pattern else files_below(self.root)
        tars = [path for path in found if self._is_pattern or path.suffix.lower() == ".tar"]
        return sorted(tars, key=lambda path: (len(path.relative_to(self.root).parts), path))

    def _named(self) -> list[Path]:
        found = expand_pattern(str(self.path))
        if found.paths and found.missing:
            raise SourceError(
                f"{len(found.missing)} of the tars of the pattern do not exist",
                where=found.missing[0],
                fix="check the pattern, or fetch them",
            )
        return found.paths

    def _name(self, tar: Path) -> str:
        """Return the name of a tar in ids and locations: its path in the folder."""
        name = tar.name if self.root.is_file() else tar.relative_to(self.root)
        return text_of_name(os.fsencode(name))

    def _check_found(self, tars: list[Path]) -> None:
        """Raise SourceError where there is no tar, or where one is compressed or unfinished."""
        files = [] if self._is_pattern or self.root.is_file() else files_below(self.root)
        check_finished(files)

        compressed = [file for file in files if file.name.lower().endswith(_COMPRESSED)]
        if compressed:
            raise SourceError(
                f"compressed tars are not read: {count_suffixes(compressed)}",
                where=compressed[0],
                fix="unpack them to plain tars: gunzip; or move them elsewhere",
            )

        if not tars:
            raise SourceError(
                f"there is no .tar in the folder or below, which hold {count_suffixes(files)}",
                where=self.root,
                fix="name a folder of .tar files; pictures are folder://DIR, lists urls://DIR",
            )

    def listing(self) -> pa.Table:
        """See Source. A location is `TAR:OFFSET:SIZE`, or `TAR:HEADER:SIZE:sparse`.

        Only members count that `tar` would extract, without hidden files: see `tar_members`.
        """
        # The first tar with a key has the key as id; further ones need the tar's name, too.
        rows: dict[str, dict[str, str]] = {}
        repeats: list[dict[str, str]] = []
        tars = self.tars
        self._check_found(tars)
        for path in tars:
            tar = self._name(path)
            for picture in _pictures(path, visible_files(_members(path))):
                key = key_of(picture.name)
                row = {"location": f"{tar}:{picture.place}", "etag": picture.etag}
                if key in rows:
                    repeats.append({"image_id": f"{tar}/{picture.name}", **row})
                else:
                    rows[key] = {"image_id": key, **row}

        return make_listing([*rows.values(), *repeats])

    def labels(self) -> dict[str, int]:
        """Return the class of each picture that has one, by location, from `KEY.cls`.

        Raises:
            SourceError: a tar is damaged, or such a file holds something else.
        """
        return self._beside(class_labels)

    def class_names(self) -> dict[str, str]:
        """Return the class of each picture that has one, by location: the number as a text; errors
        as `labels`."""
        return {place: str(label) for place, label in self.labels().items()}

    def captions(self) -> dict[str, tuple[str, ...]]:
        """Return the captions of pictures, by location, from `KEY.json`, else from `KEY.txt`.

        Raises:
            SourceError: a tar is damaged, or such a file is.
        """
        return self._beside(tar_captions)

    def _beside(self, read: Callable[[Path, Members], dict[str, _Said]]) -> dict[str, _Said]:
        """Return by location what a tar says of its pictures by key."""
        found: dict[str, _Said] = {}
        for path in self.tars:
            files = visible_files(_members(path))
            said = read(path, files.members)
            for picture in _pictures(path, files):
                if (key := key_of(picture.name)) in said:
                    found[f"{self._name(path)}:{picture.place}"] = said[key]
        return found

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        # The location of a link to nothing is its name alone.
        place = re.fullmatch(r"(.*):(\d+):(\d+)(:sparse)?", location, re.DOTALL)
        if place is None:
            raise RefusedFileError(LINK_TO_NOTHING)

        path = self._tar(place[1])
        if place[4] is None:
            return read_file(path, limit, start=int(place[2]), size=int(place[3]))
        # A sparse file's size counts with its holes, so it is checked before it is filled.
        read_file(path, 0, size=int(place[3]))
        return read_sparse(path, int(place[2]))[:limit]

    def _tar(self, name: str) -> Path:
        """Return the tar of a name in a location; it always lies below the folder."""
        if self.root.is_file():
            return self.root
        inside = PurePosixPath(
            *[part for part in PurePosixPath(name).parts if part not in ("..", "/")]
        )
        return Path(os.fsdecode(file_below(self.root, str(inside))))

    def credits(self) -> tuple[Author, ...]:
        """Return nobody: tars carry credits, if any, beside each picture."""
        return ()


@dataclass(frozen=True)
class _Picture:
    """A picture of a tar: its path there, the end of its location, and its etag."""

    name: str
    place: str
    etag: str


def _pictures(path: Path, files: TarFiles) -> Iterator[_Picture]:
    """Yield the pictures of a tar; an etag is size and time, without a time also the tar's."""
    status = path.stat()
    # A later member of the same name wins when a tar is extracted.
    if replaced := [name for name in files.replaced if _names_picture(name)]:
        message = "%s: members that a later one of the same name replaces, left out: %d, such as %s"
        logger.warning(message, path, len(replaced), replaced[0])

    for name, member in files.members.items():
        if _names_picture(name):
            tar = "" if member.mtime else f"-{status.st_size}-{status.st_mtime_ns}"
            sparse = member.issparse()
            start = member.offset if sparse else member.offset_data
            place = f"{start}:{member.size}{':sparse' if sparse else ''}"
            yield _Picture(name, place, f"{member.size}-{member.mtime}{tar}")

    # Links to nothing are listed, so that the ledger can say so.
    yield from (
        _Picture(name, name, LINK_TO_NOTHING) for name in files.lost if _names_picture(name)
    )


def _names_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _members(path: Path) -> list[tarfile.TarInfo]:
    """Return the members of a tar that is whole, plain and a regular file."""
    try:
        if not path.is_file():
            raise tarfile.ReadError("not a regular file")  # reading a pipe would wait forever

        with open_tar(path, is_plain=True) as tar:  # compressed ones have no offsets
            members = tar.getmembers()
            # At a damaged header tarfile ends as at the end of the archive: the rest would vanish
            # in silence.
            with open(path, "rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end of archive after {len(members)} members")
    except (tarfile.TarError, OSError) as error:
        raise SourceError(
            f"the tar is damaged or compressed: {error}",
            where=path,
            fix="fetch it again, or unpack it to a plain tar",
        ) from error
    return members
