"""`webdataset:///DIR_OR_TAR`: pictures in WebDataset tars, read in place by offset."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from rdm.errors import SourceError
from rdm.sources.decode import IMAGE_SUFFIXES
from rdm.sources.listing import Author, make_listing
from rdm.sources.local import PATH_HINT, LocalSource, local_path, read_file


class WebDatasetSource(LocalSource):
    """The pictures of one tar or of every tar in a folder; the image id is the member's key.

    Tars may number their members alike: the key belongs to the first tar by name, and `TAR/MEMBER` to the others.
    """

    def __init__(self, rest: str) -> None:
        self.root = local_path("webdataset", rest)
        self.spec = f"webdataset://{self.root}"
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
        """See Source. A location is `TAR:OFFSET:SIZE`."""
        rows: dict[str, dict[str, str]] = {}
        repeats = []
        for path in self.tars:
            for member, etag in _pictures(path):
                key = str(PurePosixPath(member.name).with_suffix(""))
                row = {"location": f"{path.name}:{member.offset_data}:{member.size}", "etag": etag}
                if key in rows:
                    repeats.append({"image_id": f"{path.name}/{member.name}", **row})
                else:
                    rows[key] = {"image_id": key, **row}
        return make_listing([*rows.values(), *repeats])

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        name, offset, size = location.rsplit(":", 2)
        path = self.root if self.root.is_file() else self.root / Path(name).name
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
