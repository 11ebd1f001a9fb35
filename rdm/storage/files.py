"""A folder on any fsspec filesystem, with checked paths and writes that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
import fsspec.core
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from rdm.config import Record
from rdm.errors import MissingDependencyError, StorageError, UsageError
from rdm.storage.atomic import TEMPORARY_SUFFIX, atomic_path, read_error, storage_errors

# numpy parses the header of an npy file as Python, hence the unusual errors of a damaged one.
_NPY_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    TypeError,
    OverflowError,
    tokenize.TokenError,
)
RecordT = TypeVar("RecordT", bound=Record)


def absolute_path(path: str | Path) -> str:
    """Return a path that is the same in every working directory; `~` is the home."""
    return os.path.abspath(os.path.expanduser(path))


def absolute_url(url: str) -> str:
    """Return a local path or an fsspec URL that is the same in every working directory."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return absolute_path(url)
    return f"{scheme}://{absolute_path(rest)}" if scheme in ("file", "local") and rest else url


class Folder:
    """A directory addressed by a local path or any fsspec URL (`s3://...`, `memory://...`).

    A relative path counts from the working directory in which the object was made: workers
    elsewhere get the absolute one. Every path inside the folder is checked: it cannot be absolute
    and cannot leave the folder.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        if not os.fspath(url):
            raise UsageError(
                "the name of a folder is empty",
                fix="give a path, or a URL such as s3://bucket/folder",
            )
        self.url = absolute_url(os.fspath(url).rstrip("/") or "/")

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (Folder, (self.url,))

    @cached_property
    def _resolved(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # fsspec loads the package of a protocol when a URL is first used.
        try:
            return fsspec.core.url_to_fs(self.url)
        except ImportError as error:  # fsspec says which package it wants
            raise MissingDependencyError(
                f"no package is installed for this kind of URL: {error}",
                where=self.url,
                fix="install it (aiohttp and requests for http, s3fs for s3, gcsfs for gs), "
                "or copy the folder here",
            ) from error
        except ValueError as error:
            raise UsageError(
                f"this folder cannot be opened: {error}",
                where=self.url,
                fix="give a path, or a URL of a protocol that fsspec knows",
            ) from error

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local disk, so that files can be memory-mapped in place."""
        return "file" in self._protocols

    @property
    def _protocols(self) -> tuple[str, ...]:
        protocol = self._resolved[0].protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    def path(self, relative: str = "") -> str:
        """Return the filesystem path of a relative path.

        Raises:
            StorageError: the path is absolute or leaves the folder.
        """
        parts = PurePosixPath(relative).parts
        # Names come from files that others may have written: none may lead out.
        if relative.startswith("/") or ".." in parts or "\\" in relative or "\0" in relative:
            raise StorageError(
                f"the path {relative!r} leaves its folder",
                where=self.url,
                fix="the file that names it is damaged or not to be trusted",
            )

        base = self._resolved[1]
        return "/".join([base.rstrip("/"), *parts]) if parts else base

    def exists(self, relative: str = "") -> bool:
        """Return whether a file or directory exists."""
        return bool(self._resolved[0].exists(self.path(relative)))

    def size(self, relative: str) -> int:
        """Return the size of a file in bytes."""
        return int(self._resolved[0].size(self.path(relative)) or 0)

    def names(self, relative: str = "", suffix: str = "") -> list[str]:
        """Return the sorted names of the entries of a directory; empty if it does not exist."""
        # Another process may have written since the listing was cached.
        filesystem, _ = self._resolved
        directory = self.path(relative)
        if not filesystem.isdir(directory):
            return []
        filesystem.invalidate_cache(directory)

        names = [PurePosixPath(entry).name for entry in filesystem.ls(directory, detail=False)]
        return sorted(n for n in names if n.endswith(suffix) and not n.endswith(TEMPORARY_SUFFIX))

    def read_bytes(self, relative: str) -> bytes:
        """Return the contents of a file.

        Raises:
            StorageError: the file is missing or cannot be read.
        """
        try:
            return bytes(self._resolved[0].cat_file(self.path(relative)))  # type: ignore[arg-type]
        except Exception as error:
            if self.is_local and not isinstance(error, OSError):
                raise
            # A store's client has errors of its own kinds.
            raise read_error(error, self.describe(relative)) from error

    def read_json(self, relative: str) -> Any:
        """Return a JSON file's value; a damaged one raises StorageError."""
        try:
            return json.loads(self.read_bytes(relative))
        except ValueError as error:
            raise StorageError(
                f"the file is not JSON: {error}",
                where=self.describe(relative),
                fix="restore it from a copy, or build again",
            ) from error

    def read_record(self, relative: str, kind: type[RecordT]) -> RecordT:
        """Return a JSON file's record; raise StorageError if it is damaged or of another kind."""
        value = self.read_json(relative)
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise StorageError(
                f"the file is damaged: {field or 'its value'}: {first['msg']}",
                where=self.describe(relative),
                fix="restore it from a copy, or build again",
            ) from error

    def write_record(self, relative: str, record: Record) -> None:
        """Write a record as JSON, atomically; equal records give equal bytes."""
        self.write_json(relative, record.to_json())

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """Return a Parquet file's table; raise StorageError if it is damaged or lacks a column."""
        try:
            with self._native_file(relative) as file:
                # Not `pq.read_table`: it imports pyarrow.dataset, and with it pandas, half a second
                # of processor time.
                table = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True).read(
                    columns=columns
                )

            # Checksums were verified page by page; now that lists and texts are consistent.
            table.validate(full=True)
            if missing := set(columns or ()) - set(table.column_names):
                raise pa.ArrowInvalid(f"it has no column {', '.join(sorted(missing))}")
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise read_error(error, self.describe(relative)) from error
        return table

    def _native_file(self, relative: str) -> pa.NativeFile:
        """Open a file for pyarrow's threads, which may outlive the reading.

        A Python object, whose last owner they can be, would need the interpreter while it ends, and
        the process would be aborted.
        """
        if self.is_local:
            return pa.OSFile(self.path(relative), "rb")
        return pa.BufferReader(self._resolved[0].cat_file(self.path(relative)))

    def read_array(self, relative: str) -> NDArray[Any]:
        """Return an npy file's array, memory-mapped; raise StorageError if it is damaged."""
        # Mapped read-only: a part of many gigabytes costs no memory until its rows are used.
        try:
            return np.load(self.local(relative), mmap_mode="r", allow_pickle=False)
        except _NPY_ERRORS as error:
            raise read_error(error, self.describe(relative)) from error

    def local(self, relative: str) -> Path:
        """Return a local path of a file, for memory maps and libraries that open paths.

        A remote file is copied once into the user's cache folder, under a name that includes its
        size and version tag.
        """
        filesystem, _ = self._resolved
        path = self.path(relative)
        if self.is_local:
            return Path(path)

        # The version tag is part of the name, so a file that was replaced is copied again.
        version = f"{self.url}/{relative}:{filesystem.ukey(path)}"
        tag = hashlib.sha256(version.encode()).hexdigest()[:24]
        cache = Path(os.environ.get("RDM_CACHE", Path.home() / ".cache" / "rdm"))
        cached = cache / f"{tag}-{PurePosixPath(relative).name}"
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(cached) as temporary:
                filesystem.get_file(path, str(temporary))
        return cached

    @contextmanager
    def writing(self, relative: str) -> Iterator[Path]:
        """Yield a temporary local path, which takes the file's place on leaving, or not at all.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        target = self.path(relative)
        if self.is_local:
            with atomic_path(Path(target)) as temporary:
                yield temporary
            return

        # A store's upload is whole or absent by itself.
        with tempfile.TemporaryDirectory() as directory:
            temporary = Path(directory) / PurePosixPath(relative).name
            yield temporary
            self._resolved[0].put_file(str(temporary), target)

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write a file atomically."""
        with self.writing(relative) as temporary:
            temporary.write_bytes(data)

    def write_json(self, relative: str, value: Any) -> None:
        """Write a JSON file atomically, keys sorted, so that equal values give equal bytes."""
        self.write_bytes(
            relative,
            (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(),
        )

    def write_table(self, relative: str, table: pa.Table) -> None:
        """Write a Parquet file atomically, zstd-compressed; equal tables give equal bytes."""
        with self.writing(relative) as temporary:
            pq.write_table(
                table,
                temporary,
                compression="zstd",
                write_statistics=True,
                write_page_checksum=True,
            )

    def write_array(self, relative: str, array: NDArray[Any]) -> None:
        """Write an npy file atomically; a full disk is an error with its cause.

        `numpy.save` says neither errno nor cause.
        """
        contiguous = np.ascontiguousarray(array)
        with self.writing(relative) as temporary, open(temporary, "wb") as file:
            # As `numpy.save` writes it: equal arrays give equal bytes.
            np.lib.format.write_array_header_1_0(
                file, np.lib.format.header_data_from_array_1_0(contiguous)
            )
            file.write(contiguous.data)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, atomically: a hard link, or a copy where links are unknown."""
        origin, place = Path(self.path(source)), Path(self.path(target))
        with atomic_path(place) as temporary:
            try:
                os.link(origin, temporary)
            except OSError:
                shutil.copyfile(origin, temporary)

    def delete(self, relative: str) -> None:
        """Delete a file or a directory with all it holds; a missing one is no error."""
        if self.exists(relative):
            self._resolved[0].rm(self.path(relative), recursive=True)

    def delete_empty(self, relative: str) -> None:
        """Delete the empty directories below a directory of a local folder."""
        # From the leaves up, so that a folder of empty folders goes, too.
        for path, _, _ in os.walk(self.path(relative), topdown=False):
            if path != self.path(relative) and not os.listdir(path):
                os.rmdir(path)

    def make(self) -> None:
        """Create the folder where it is missing."""
        with storage_errors(self.url):
            self._resolved[0].makedirs(self.path(), exist_ok=True)

    def describe(self, relative: str = "") -> str:
        """Return the full path or URL of a relative path, for messages."""
        return f"{self.url}/{relative}" if relative else self.url

    def files(self, relative: str) -> list[str]:
        """Return the sorted relative paths of all files below a directory; empty without one."""
        filesystem, base = self._resolved
        directory = self.path(relative)
        if not filesystem.isdir(directory):
            return []
        return sorted(str(path)[len(base.rstrip("/")) + 1 :] for path in filesystem.find(directory))

    def sweep_temporaries(self) -> int:
        """Delete killed writers' leftovers, under the writer's lock; return their number."""
        if not self.is_local or not self.exists():
            return 0

        # Under the lock no writer is at work, so all of these are leftovers.
        stale = list(Path(self.path()).rglob(f".*{TEMPORARY_SUFFIX}"))
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a local file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
