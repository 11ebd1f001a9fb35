"""`webdataset:///DIR_OR_TAR_OR_PATTERN`: pictures in WebDataset tars, read in place by offset."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from rdm.errors import SourceError
from rdm.sources.decode import IMAGE_SUFFIXES
from rdm.sources.listing import Author, make_listing
from rdm.sources.local import PATH_HINT, LocalSource, local_path, read_file
from rdm.sources.patterns import check_finished, count_suffixes, expand_pattern, fixed_part, visible_files

_COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


class WebDatasetSource(LocalSource):
    """The pictures of one tar, of every tar in a folder and below, or of those that a pattern names.

    The image id is the member's key. Tars may number their members alike: the key belongs to the first tar by name,
    those of folders below last, and `TAR/MEMBER` to the others.
    """

    def __init__(self, rest: str) -> None:
        self.path = local_path("webdataset", rest)
        self.spec = f"webdataset://{self.path}"
        self._is_pattern = not self.path.exists()
        self.root = fixed_part(str(self.path)) if self._is_pattern else self.path
        if self._is_pattern and not self.tars:
            raise SourceError(
                "the WebDataset does not exist",
                where=self.path,
                fix=f"name a .tar file, a folder of them or a pattern such as {{000..003}}.tar {PATH_HINT}",
            )

    @property
    def tars(self) -> list[Path]:
        """The tar files, sorted by name, those of folders below last.

        Raises:
            SourceError: a pattern names tars that do not exist.
        """
        if self.root.is_file():
            return [self.root]
        found = self._named() if self._is_pattern else visible_files(self.root)
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
        return tar.name if self.root.is_file() else tar.relative_to(self.root).as_posix()

    def _check_found(self, tars: list[Path]) -> None:
        """Raise SourceError where there is no tar, or one beside others that is compressed or not whole."""
        files = [] if self._is_pattern or self.root.is_file() else visible_files(self.root)
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
        """See Source. A location is `TAR:OFFSET:SIZE`."""
        rows: dict[str, dict[str, str]] = {}
        repeats = []
        tars = self.tars
        self._check_found(tars)
        for path in tars:
            for member, etag in _pictures(path):
                key = str(PurePosixPath(member.name).with_suffix(""))
                row = {"location": f"{self._name(path)}:{member.offset_data}:{member.size}", "etag": etag}
                if key in rows:
                    repeats.append({"image_id": f"{self._name(path)}/{member.name}", **row})
                else:
                    rows[key] = {"image_id": key, **row}
        return make_listing([*rows.values(), *repeats])

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        name, offset, size = location.rsplit(":", 2)
        inside = [part for part in PurePosixPath(name).parts if part not in ("..", "/")]
        path = self.root if self.root.is_file() else self.root.joinpath(*inside)
        return read_file(path, limit, start=int(offset), size=int(size))

    def credits(self) -> tuple[Author, ...]:
        """Return nobody: tars carry credits, if any, beside each picture."""
        return ()


def _pictures(path: Path) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yield the pictures of a tar, and the etag of each: its size and time, or without a time those of the tar too."""
    members, status = _members(path), path.stat()
    for member in members:
        if member.isfile() and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES:
            tar = "" if member.mtime else f"-{status.st_size}-{status.st_mtime_ns}"
            yield member, f"{member.size}-{member.mtime}{tar}"


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        if not path.is_file():
            raise tarfile.ReadError("not a regular file")  # a pipe would be waited for
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:  # compressed ones have no offsets
            members = tar.getmembers()
            # At a damaged header tarfile ends as at the end of the archive, and what follows would vanish in silence.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end of archive after {len(members)} members")
    except (tarfile.TarError, OSError) as error:
        raise SourceError(
            f"the tar is damaged or compressed: {error}", where=path, fix="fetch it again, or unpack it to a plain tar"
        ) from error
    return members
