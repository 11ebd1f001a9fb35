"""One part of foreign embeddings as a shard of the database: rows spread over their patch ids."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import tarfile
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.config import Record
from rdm.database.contract import CORNERS, ORIGIN_COLUMNS, PATCH_SCHEMA, stats_path
from rdm.database.exchange.foreign_layouts import TEXTS, ForeignPart, unit_vectors
from rdm.errors import DatabaseError
from rdm.sources.ledger import IMPORTED, LEDGER_SCHEMA, ShardStats
from rdm.storage import Folder

_GAPS = 100_000  # places that patch ids may leave empty beside nine times the rows


class ImportStats(Record):
    """Counts of one imported part, and the patch ids that it leaves empty."""

    count: int
    num_images: int
    empty: list[int]


def write_imported(
    folder: Folder, part: ForeignPart, stem: str, outputs: list[str], first: int, dim: int
) -> ImportStats:
    """Read a foreign part, check it, and write it as a shard of the database."""
    # Read and check.
    found = part.load()
    if len(found.vectors) == 0:
        found = replace(found, vectors=np.zeros((0, dim), np.float16))

    if found.vectors.shape[1] != dim:
        raise DatabaseError(
            f"the embeddings have {found.vectors.shape[1]} dimensions, the encoder {dim}",
            where=part.where,
            fix="name the encoder that made them: --encoder",
        )

    # Spread the rows over the part's patch ids; ids that no row has stay zero vectors.
    unit, norms = unit_vectors(found, part.where)
    places, count = _places(found.rows, first, part.where)
    table = _spread(found.rows.append_column("length", pa.array(norms)), places, first, count)
    vectors = np.zeros((count, dim), np.float16)
    vectors[places] = unit

    # Places that no row has are told, so that the version counts them as deleted.
    empty = np.setdiff1d(np.arange(count), places)
    num_images = _write_part(folder, stem, outputs, table, vectors, empty)

    return ImportStats(count=count, num_images=num_images, empty=(empty + first).tolist())


def _write_part(
    folder: Folder,
    stem: str,
    outputs: list[str],
    table: pa.Table,
    vectors: NDArray[np.float16],
    empty: NDArray[np.int64],
) -> int:
    """Write a part's files and return the number of its photographs."""
    ledger, image_rows = _ledger(table, empty, stem)

    # No pixels: a tar without members.
    with folder.writing(outputs[0]) as path, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT):
        pass
    folder.write_table(outputs[1], ledger)

    counts = ShardStats(
        count=ledger.num_rows, successes=0, failed=0, status_dict={IMPORTED: ledger.num_rows}
    )
    folder.write_record(stats_path(outputs[0]), counts)

    folder.write_table(outputs[2], _patches(table, image_rows, stem))
    folder.write_array(outputs[3], vectors)
    folder.write_table(outputs[4], table.select(["patch_id", *TEXTS, "norm"]))
    return ledger.num_rows


def _places(rows: pa.Table, first: int, where: str) -> tuple[NDArray[np.int64], int]:
    """Return each row's place [N], counted from the part's first patch id, and their number."""
    if "patch_id" not in rows.column_names:
        return np.arange(rows.num_rows), rows.num_rows

    # Ids ascend strictly from the first id of the part on.
    places = rows["patch_id"].to_numpy().astype(np.int64) - first
    wrong = np.diff(places, prepend=-1) <= 0
    if wrong.any():
        row = int(wrong.argmax())
        raise DatabaseError(
            f"the patch id in row {row} is {places[row] + first}: ids must ascend, over the "
            "parts too",
            where=where,
            fix="sort the rows, or leave the column patch_id out",
        )

    # Every empty place costs a zero vector and a tombstone: a gap must not fill the disk.
    count = int(places[-1]) + 1 if len(places) else 0
    if count > 10 * rows.num_rows + _GAPS:
        raise DatabaseError(
            f"patch ids up to {count + first - 1} for {rows.num_rows} rows leave too many "
            "empty places",
            where=where,
            fix="leave the column patch_id out: rows are counted then",
        )
    return places, count


def _spread(rows: pa.Table, places: NDArray[np.int64], first: int, count: int) -> pa.Table:
    """Return `count` rows, those found in their places, the others empty."""
    # Row of the found table for each place; -1 becomes null, and null becomes empty or zero.
    taken = np.full(count, -1, np.int64)
    taken[places] = np.arange(rows.num_rows)
    picked = rows.take(pa.array(taken, mask=taken < 0))

    columns: dict[str, Any] = {
        "patch_id": pa.array(np.arange(first, first + count, dtype=np.int64))
    }
    columns |= {name: pc.fill_null(picked[name], "") for name in TEXTS}
    columns |= {name: pc.fill_null(picked[name], 0) for name in CORNERS}
    return pa.table({**columns, "norm": pc.fill_null(picked["length"], 0.0)})


def _ledger(
    table: pa.Table, empty: NDArray[np.int64], stem: str
) -> tuple[pa.Table, NDArray[np.int32]]:
    """Return one ledger row per photograph, and each patch's row in it (-1 of an empty place)."""
    encoded = table["image_id"].combine_chunks().dictionary_encode()
    names, rows = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int32)

    # All empty places look like one photograph without a name: take it out, close the gap.
    if len(empty):
        gone = names.index("")
        names.pop(gone)
        rows = np.where(rows == gone, -1, rows - (rows > gone)).astype(np.int32)

    # Facts of a photograph are those of its first patch.
    firsts = np.unique(rows[rows >= 0], return_index=True)[1]
    described = table.filter(pa.array(rows >= 0)).take(pa.array(firsts))
    columns: dict[str, Any] = {
        field.name: pa.nulls(len(names), field.type) for field in LEDGER_SCHEMA
    }

    # No file was fetched, so sizes, digests and hashes of pictures stay null: a digest that the
    # folder names is a claim, kept with the patches.
    columns |= {
        "key": [f"{stem}{number:06d}" for number in range(len(names))],
        "image_id": names,
        "status": [IMPORTED] * len(names),
        "num_bytes": [0] * len(names),
        **dict.fromkeys(("error_message", "etag"), [""] * len(names)),
        **{name: described[name] for name in ORIGIN_COLUMNS if name != "sha256"},
    }
    return pa.table(columns).cast(LEDGER_SCHEMA), rows


def _patches(table: pa.Table, image_rows: NDArray[np.int32], stem: str) -> pa.Table:
    shards = np.where(image_rows >= 0, stem, "")
    columns = [
        table["patch_id"],
        table["image_id"],
        shards,
        image_rows,
        *(table[name] for name in CORNERS),
    ]
    return pa.table(columns, names=PATCH_SCHEMA.names).cast(PATCH_SCHEMA)
