"""WebDataset tars whose members have one size, so that row r lies at r times a constant stride."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEAD_BYTES = 1 << 16  # holds the first member's tar and npy headers


def write_tar(path: Path, stem: str, arrays: Iterable[NDArray[Any]]) -> None:
    """Write arrays of one shape and type as the members `STEM000000.npy`, `STEM000001.npy`, ...

    Members carry no time, owner or mode of their own, so that equal arrays give equal bytes.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, values in enumerate(arrays):
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            member = tarfile.TarInfo(f"{stem}{row:06d}.npy")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)


def tar_rows(data: NDArray[np.uint8], count: int) -> NDArray[Any]:
    """Return the members of a tar as one array [count, ...], a view of its bytes.

    Args:
        data: all bytes of the tar.
        count: its members, one or more.

    Raises:
        ValueError: the tar is damaged, or shorter than so many members of the first one's size.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data[:_HEAD_BYTES].tobytes())) as tar:
            member = tar.next()
    except tarfile.TarError as error:
        raise ValueError(f"it is no tar: {error}") from error

    if member is None:
        raise ValueError("the tar is empty")

    # All members have the first one's size, so row r lies at r times one stride.
    shape, dtype, start = _npy_header(data[member.offset_data : _HEAD_BYTES].tobytes())
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    stride = tarfile.BLOCKSIZE + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    if start + num_bytes != member.size:
        raise ValueError(f"its first member has {member.size} bytes instead of {start + num_bytes}")
    if len(data) < stride * count:
        raise ValueError(f"the tar is shorter than {count} members")

    start += member.offset_data
    rows = data[: stride * count].reshape(count, stride)
    return rows[:, start : start + num_bytes].view(dtype).reshape(count, *shape)


def _npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape and type that an npy file's header names, and where its numbers start."""
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    if version != (1, 0):
        raise ValueError(f"its members are npy files of version {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(buffer)
    if fortran_order or dtype.hasobject:
        raise ValueError("its members are not plain arrays in C order")
    return shape, dtype, buffer.tell()
