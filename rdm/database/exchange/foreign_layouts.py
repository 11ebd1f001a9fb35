"""Read embeddings from elsewhere: clip-retrieval's folders, and npz parts of RDM's release.

Nothing that is read here can run code: arrays of Python objects are refused, and every size is
checked before memory is taken. An error names the file, and the row where there is one.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.contract import CORNERS, ORIGIN_COLUMNS
from rdm.errors import DatabaseError, StorageError
from rdm.storage import Folder
from rdm.storage.atomic import read_error

ForeignFormat = Literal["clip-retrieval", "rdm-npz"]
TEXTS = ("image_id", "image_path", "caption", *ORIGIN_COLUMNS)
UNIT_TOLERANCE = 2e-3  # what rounding to float16 can do to the length of a unit vector
_CHUNK = 16_384  # rows that are widened to float64 at a time
_NPZ_ARRAYS = ("embedding", "img_id", "patch_coords")


@dataclass(frozen=True, eq=False)
class ForeignRows:
    """One part: vectors float [N, dim], and a row for each.

    `rows` has the TEXTS (empty where unknown), the CORNERS (zeros where unknown), and may have
    `patch_id` and `norm`.
    """

    vectors: NDArray[np.floating]
    rows: pa.Table
    is_raw: bool
    """Whether the vectors are as the encoder gave them, not normalized."""


@dataclass(frozen=True)
class ForeignPart:
    """One part that can be read: its files, relative to the folder, and their reader."""

    folder: Folder
    files: tuple[str, ...]
    read: Callable[[Folder, tuple[str, ...]], ForeignRows]

    @property
    def where(self) -> str:
        """The file of its vectors, for messages."""
        return self.folder.describe(self.files[0])

    def load(self) -> ForeignRows:
        """Read and check the part. One without rows is sound whatever the shape of its arrays.

        Raises:
            DatabaseError: the file is damaged; the message says how, and in which row.
            StorageError: the file is missing, truncated, or holds Python objects.
        """
        found = self.read(self.folder, self.files)
        vectors = found.vectors
        # A part without rows. numpy writes no rows as (0,) and in float64.
        if vectors.shape[:1] == (0,) and found.rows.num_rows == 0:
            return found

        # One vector for each row, and a name for each vector.
        if vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.shape[1] == 0:
            raise _damaged(
                f"the embeddings are {vectors.dtype} {vectors.shape}, not rows of numbers",
                self.where,
            )
        if len(vectors) != found.rows.num_rows:
            raise _damaged(
                f"{len(vectors)} embeddings, but {found.rows.num_rows} rows describe them",
                self.where,
            )

        nameless = pc.index(pc.equal(found.rows["image_id"], ""), True).as_py()
        if nameless >= 0:
            raise _damaged(f"row {nameless} has no image id, path or URL", self.where)
        return found


def foreign_parts(kind: ForeignFormat, url: str) -> list[ForeignPart]:
    """Return the parts of a folder in their order.

    Args:
        kind: `clip-retrieval` or `rdm-npz`.
        url: folder or URL.

    Raises:
        DatabaseError: the folder holds none.
    """
    folder = Folder(url)
    parts = _clip_retrieval_parts(folder) if kind == "clip-retrieval" else _npz_parts(folder)
    if not parts:
        expected = "img_emb/*.npy with metadata/*.parquet" if kind == "clip-retrieval" else "*.npz"
        raise DatabaseError(f"the folder has no {expected}", where=url, fix="check the path")
    return parts


def unit_vectors(found: ForeignRows, where: str) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return a part's unit vectors float16 [N, dim] and their lengths [N] before normalization.

    Vectors that are of unit length already stay as they are, bit for bit if they are float16.

    Raises:
        DatabaseError: a vector is zero, not finite, or not of the length that its row says.
    """
    count = len(found.vectors)
    recorded = found.rows["norm"].to_numpy() if "norm" in found.rows.column_names else None
    unit, norms = np.empty(found.vectors.shape, np.float16), np.ones(count, np.float32)

    # In chunks: a part of the release is 2 million rows, several GB in float64.
    for start in range(0, count, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        wide = np.asarray(found.vectors[chunk], np.float64)
        lengths = np.linalg.norm(wide, axis=1)
        _refuse(~np.isfinite(lengths) | (lengths == 0), start, "is zero or not finite", where)

        if recorded is not None:
            norms[chunk] = recorded[chunk]

        # Raw vectors are divided by the recorded length, so that unit times norm gives them back.
        if found.is_raw:
            divisors = lengths if recorded is None else norms[chunk].astype(np.float64)
            wrong = ~(
                np.abs(lengths / np.where(divisors > 0, divisors, np.inf) - 1) < UNIT_TOLERANCE
            )
            _refuse(wrong, start, "is not of the length that its row says", where)
            norms[chunk] = divisors
        else:
            is_unit = np.abs(lengths - 1) < UNIT_TOLERANCE
            divisors = np.where(is_unit, 1, lengths)
            norms[chunk] = np.where(is_unit, norms[chunk], lengths)

        unit[chunk] = wide / divisors[:, None]
    return unit, norms


def _refuse(bad: NDArray[np.bool_], start: int, what: str, where: str) -> None:
    if bad.any():
        raise _damaged(f"the embedding in row {start + int(bad.argmax())} {what}", where)


def _damaged(what: str, where: str) -> DatabaseError:
    return DatabaseError(
        what, where=where, fix="mend or replace the file; nothing of it was taken over"
    )


def _clip_retrieval_parts(folder: Folder) -> list[ForeignPart]:
    if folder.exists("manifest.json"):
        raise DatabaseError(
            "this is a retrieval database, and its folders still hold what was deleted",
            where=folder.url,
            fix=f"first: rdm database export --root {folder.url} --to clip-retrieval --out FOLDER",
        )

    # Numbered files in the order of their numbers, which rows of an index follow.
    parts = []
    for name in sorted(folder.names("img_emb", ".npy"), key=_natural):
        metadata = f"metadata/{name.removesuffix('.npy').replace('img_emb', 'metadata')}.parquet"
        if not folder.exists(metadata):
            raise _damaged(
                f"there is no {metadata} to describe its rows", folder.describe(f"img_emb/{name}")
            )
        parts.append(ForeignPart(folder, (f"img_emb/{name}", metadata), _read_clip_retrieval))
    return parts


def _read_clip_retrieval(folder: Folder, files: tuple[str, ...]) -> ForeignRows:
    vectors, metadata = folder.read_array(files[0]), folder.read_table(files[1])
    return ForeignRows(vectors, _described(metadata, folder.describe(files[1])), is_raw=False)


def _npz_parts(folder: Folder) -> list[ForeignPart]:
    names = sorted(folder.names("", ".npz"), key=_natural)
    beside = {name: f"{name.removesuffix('.npz')}.parquet" for name in names}
    files = [(name, beside[name]) if folder.exists(beside[name]) else (name,) for name in names]
    return [ForeignPart(folder, of_part, _read_npz) for of_part in files]


def _read_npz(folder: Folder, files: tuple[str, ...]) -> ForeignRows:
    where = folder.describe(files[0])
    arrays = _npz_arrays(folder, files[0])

    coordinates, image_ids = arrays["patch_coords"], _names(arrays["img_id"], where)

    # Nothing can be said of the shape of no rows.
    if not image_ids and coordinates.shape[:1] == (0,):
        coordinates = np.zeros((0, 4), np.int64)

    if coordinates.shape != (len(image_ids), 4) or coordinates.dtype.kind not in "iuf":
        raise _damaged(
            f"patch_coords are {coordinates.dtype} {coordinates.shape}, not four numbers a row",
            where,
        )

    # Some tools store pixels as floats; what does not fit into int32 is no pixel.
    rounded = np.rint(coordinates.astype(np.float64))
    bad = ~(np.abs(rounded) < 2**31).all(axis=1)
    if bad.any():
        raise _damaged(f"the coordinates in row {int(bad.argmax())} are not pixels", where)

    # The table that our own export writes beside has names, lengths and ids that arrays cannot.
    if len(files) == 2:
        rows = _described(folder.read_table(files[1]), folder.describe(files[1]))
    else:
        columns = {"image_id": image_ids} | dict(zip(CORNERS, rounded.T, strict=True))
        rows = _described(pa.table(columns), where)

    return ForeignRows(arrays["embedding"], rows, is_raw=True)


def _npz_arrays(folder: Folder, name: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of one npz file, after a look at every header."""
    path = folder.local(name)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                member.filename.removesuffix(".npy"): member for member in archive.infolist()
            }

            missing = [array for array in _NPZ_ARRAYS if array not in members]
            if missing:
                raise _damaged(f"there is no {', '.join(missing)} in it", folder.describe(name))

            # Before numpy takes memory for whatever shape an array's header promises.
            for array in _NPZ_ARRAYS:
                _check_size(archive, members[array], folder.describe(name))

        with np.load(path, allow_pickle=False) as loaded:
            return {array: loaded[array] for array in _NPZ_ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise read_error(error, folder.describe(name)) from error


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
    """Refuse an array whose header and size in the archive disagree, before it takes memory."""
    with archive.open(member) as file:
        # Parse the header alone.
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise StorageError(
                f"{member.filename} is of an unknown npy version {version}", where=where
            )

        shape, _, dtype = reader(file)
        # Python objects are pickles: reading them runs code.
        if dtype.hasobject:
            raise StorageError(
                f"{member.filename} holds Python objects, which can run code when they are read",
                where=where,
                fix="save it again as numbers or fixed-length strings",
            )

        # As a Python integer: a forged shape overflows int64 and would pass.
        if file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize != member.file_size:
            raise _damaged(
                f"{member.filename} says it has the shape {shape}, but not that size", where
            )


def _names(values: NDArray[Any], where: str) -> list[str]:
    if values.shape[:1] == (0,):  # numpy's kind for no values is float64
        return []
    if values.ndim == 0 or values.dtype.kind not in "iuUS" or values.size != len(values):
        raise _damaged(
            f"img_id is {values.dtype} {values.shape}, not one name or number a row", where
        )

    flat = values.reshape(-1)
    return (
        np.char.decode(flat, "utf-8", "replace") if values.dtype.kind == "S" else flat.astype(str)
    ).tolist()


def _described(table: pa.Table, where: str) -> pa.Table:
    """Return rows with exactly the columns of `ForeignRows`, whatever the file calls them."""
    try:
        columns: dict[str, Any] = {name: _texts(table, name) for name in TEXTS}

        # Without an id the path names the photograph, then the URL, then img2dataset's key.
        for name in ("image_path", "url", "key"):
            columns["image_id"] = pc.if_else(
                pc.equal(columns["image_id"], ""), _texts(table, name), columns["image_id"]
            )

        # Unknown corners are zeros: the whole photograph.
        for name in CORNERS:
            column = (
                table[name] if name in table.column_names else pa.nulls(table.num_rows, pa.int32())
            )
            columns[name] = pc.fill_null(column.cast(pa.int32()), 0)

        # Ids and lengths are optional, but all or nothing.
        for name, kind in (("patch_id", pa.int64()), ("norm", pa.float32())):
            if name in table.column_names:
                columns[name] = table[name].cast(kind)
                if columns[name].null_count:
                    raise _damaged(f"the column {name} has gaps", where)
    except pa.ArrowException as error:
        raise _damaged(f"a column is not of its kind: {error}", where) from error
    return pa.table(columns)


def _texts(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        return pa.chunked_array([pa.array([""] * table.num_rows, pa.string())])
    return pc.fill_null(table[name].cast(pa.string()), "")


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key by which part 10 comes after part 9."""
    return [
        (0, int(piece)) if piece.isdigit() else (1, piece)
        for piece in re.split(r"(\d+)", name)
        if piece
    ]
