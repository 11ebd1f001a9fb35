"""Files that are read whole and compared with their recorded size and digest.

The digest is XXH3 with 128 bits: as fast as memory, so that it can be checked at every read. It
guards against damage, not against somebody who means to deceive; versions of a database carry
SHA-256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from rdm.config import Config
from rdm.errors import StorageError
from rdm.storage.atomic import read_error
from rdm.storage.files import Folder

_CHUNK_BYTES = 1 << 22


class FileDigest(Config):
    """A file's content in short: its size in bytes, and 32 hexadecimal digits of XXH3."""

    num_bytes: int
    xxh3: str


def digest_file(path: Path) -> FileDigest:
    """Return the digest of a local file."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return FileDigest(num_bytes=path.stat().st_size, xxh3=hasher.hexdigest())


def read_verified(folder: Folder, relative: str, expected: FileDigest) -> NDArray[np.uint8]:
    """Return a file's bytes [N]: a memory map of a local one, a remote one by one request.

    Raises:
        StorageError: the file is missing, cannot be read, or is not the one that was recorded.
    """
    where = folder.describe(relative)

    try:
        if folder.is_local:
            data = np.memmap(folder.local(relative), np.uint8, "r")
        else:
            data = np.frombuffer(folder.read_bytes(relative), np.uint8)
    except (OSError, ValueError) as error:  # numpy cannot map an empty file
        raise read_error(error, where) from error

    # The size first, which costs nothing: a file that is cut short is the most frequent damage.
    if len(data) != expected.num_bytes:
        _raise_damaged(f"the file has {len(data)} bytes instead of {expected.num_bytes}", where)
    if xxhash.xxh3_128_hexdigest(data.data) != expected.xxh3:
        _raise_damaged("the file is damaged: its digest differs from what was written", where)
    return data


def npy_rows(data: NDArray[np.uint8], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """Return the rows [count] of an npy file of version 1.0, a view of its bytes.

    Raises:
        ValueError: it has rows of another size, or another number of them.
    """
    start = 10 + int(data[8:10].view("<u2")[0])  # the header's length is at byte 8
    if len(data) - start != count * dtype.itemsize:
        found = (len(data) - start) / dtype.itemsize
        raise ValueError(f"it has {found:g} rows of {dtype.itemsize} bytes instead of {count}")
    return data[start:].view(dtype)


def _raise_damaged(what: str, where: str) -> None:
    raise StorageError(
        what, where=where, fix="copy it again from where it was built, or delete it and build again"
    )
