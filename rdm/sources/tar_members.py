"""Members of a tar that are files: those that `tar` itself would extract, without hidden ones."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rdm.errors import SourceError
from rdm.sources.file_names import is_hidden, text_of_name
from rdm.sources.photographs.decode import IMAGE_SUFFIXES


@dataclass(frozen=True)
class TarFiles:
    """The visible files of a tar, by the path that they would be extracted to.

    Attributes:
        members: the last member of each path; of a link, the member that it leads to.
        lost: paths of links that lead to no file of the tar.
        replaced: paths that occur again later in the tar, once for each time.
    """

    members: dict[str, tarfile.TarInfo]
    lost: tuple[str, ...]
    replaced: tuple[str, ...]


def open_tar(path: Path, *, is_plain: bool = False) -> tarfile.TarFile:
    """Open a tar whose names are the same in every locale; `is_plain` refuses a compressed one.

    Raises:
        tarfile.TarError: it is damaged, or no tar.
    """
    return tarfile.open(
        path, "r:" if is_plain else "r:*", encoding="utf-8", errors="surrogateescape"
    )


def visible_files(members: list[tarfile.TarInfo]) -> TarFiles:
    """Return the files among a tar's members, in its order. Devices and directories are none."""
    found: dict[str, tarfile.TarInfo | str] = {}  # a symbolic link is its text
    replaced = []
    for member in members:
        # A sparse file's own name is in its header: tarfile prefers the place-holder's if long.
        path = _extracted_path(member.pax_headers.get("GNU.sparse.name", member.name))

        if member.isreg():
            entry: tarfile.TarInfo | str = member
        elif member.issym():
            entry = text_of_name(member.linkname.encode("utf-8", "surrogateescape"))
        elif member.islnk():
            # A hard link leads to what has the name by now, a symbolic link, too.
            entry = found.get(_extracted_path(member.linkname), "")
        else:
            continue

        if path in found and found[path] is not entry:
            replaced.append(path)
        found[path] = entry

    # Symbolic links are followed when all members are known.
    visible = {path: _target(found, path) for path in found if _is_visible(path)}
    return TarFiles(
        {path: member for path, member in visible.items() if member is not None},
        tuple(path for path, member in visible.items() if member is None),
        tuple(path for path in replaced if _is_visible(path)),
    )


def iterate_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and contents of each visible file of a tar, which may be compressed.

    Raises:
        SourceError: the tar is damaged.
    """
    with _translated_errors(path), open_tar(path) as tar:
        files = visible_files(tar.getmembers()).members
        # In the file's order: a compressed tar is read forward only.
        for name, member in sorted(files.items(), key=lambda item: item[1].offset):
            file = tar.extractfile(member)
            assert file is not None  # only members that are no regular files have none
            yield name, file.read()


def read_sparse(path: Path, offset: int) -> bytes:
    """Return a sparse file's contents, holes filled; its header lies at an offset in the tar.

    Raises:
        # Opened at the member's header, so that tarfile reads its map of holes.
        OSError: it cannot be read.
    """
    with open(path, "rb") as tar:
        tar.seek(offset)
        try:
            with tarfile.open(
                fileobj=tar, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as rest:
                member = rest.next()
                file = rest.extractfile(member) if member is not None else None
                if file is None:
                    raise OSError("no file in the tar at this place")
                return file.read()
        except tarfile.TarError as error:
            raise OSError(f"the tar has changed: {error}") from error


def split_name(path: str) -> tuple[str, str]:
    """Return WebDataset's key and ending of a member: the first dot of its name divides them."""
    folder, name = posixpath.split(path)
    stem, _, ending = name.partition(".")
    return posixpath.join(folder, stem), ending


def picture_of(files: Mapping[str, bytes]) -> bytes | None:
    """Return a sample's picture, from its files by ending (`.jpg`); a JPEG before others."""
    endings = sorted(
        IMAGE_SUFFIXES & files.keys(),
        key=lambda ending: (ending != ".jpg", ending != ".jpeg", ending),
    )
    return files[endings[0]] if endings else None


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SourceError(
            f"the tar is damaged: {error}", where=path, fix="fetch it again"
        ) from error


def _extracted_path(name: str) -> str:
    return posixpath.normpath(text_of_name(name.encode("utf-8", "surrogateescape"))).lstrip("/")


def _is_visible(path: str) -> bool:
    return not any(is_hidden(part) for part in PurePosixPath(path).parts if part != "..")


def _target(found: dict[str, tarfile.TarInfo | str], path: str) -> tarfile.TarInfo | None:
    """Return the member that a path leads to through links, or None."""
    # Links in a circle lead nowhere.
    for _ in range(len(found)):
        entry = found.get(path)
        if not isinstance(entry, str):
            return entry
        # An absolute target is in no tar.
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), entry))
    return None
