"""Near-duplicates among a database's photographs, by their perceptual hashes."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.changes.plan import UpdatePlan, etags_of
from rdm.database.contract import DUPLICATE_SCHEMA
from rdm.sources.ingest import SUCCESS
from rdm.storage import Folder

HASH_BYTES = 16  # of a perceptual hash


def near_duplicates(image_ids: Sequence[str], hashes: NDArray[np.uint8], max_bits: int) -> pa.Table:
    """Return the photographs that look like one with a smaller id, sorted: DUPLICATE_SCHEMA.

    Whether a photograph is in the table depends on the photographs before it alone, not on what
    became of them. So an added photograph can only make others near-duplicates, and never makes one
    cease to be.

    Args:
        image_ids: N different ids.
        hashes: [N, 16] bytes of their perceptual hashes.
        max_bits: near-duplicates differ in at most so many bits.
    """
    # Equal hashes are one value: `group` [N] has each photograph's value, `first` its first place.
    # In the order of ids, so that the result does not depend on the order of ingestion.
    order = np.argsort(np.array(image_ids, dtype=object), kind="stable")
    values, first, group = np.unique(
        np.ascontiguousarray(hashes[order]).view(f"V{HASH_BYTES}").ravel(),
        return_index=True,
        return_inverse=True,
    )
    nearest = _first_similar(values.view(np.uint8).reshape(-1, HASH_BYTES), first, max_bits)

    # Position, in the order of ids, of the first photograph that each one looks like.
    earliest = nearest[group]
    found = np.flatnonzero(earliest < np.arange(len(order)))

    ordered, sorted_hashes = np.array(image_ids, dtype=object)[order], hashes[order]
    distances = _num_bits(sorted_hashes[found], sorted_hashes[earliest[found]])

    columns = [ordered[found].tolist(), ordered[earliest[found]].tolist(), distances]
    return pa.table(
        [
            pa.array(column, field.type)
            for column, field in zip(columns, DUPLICATE_SCHEMA, strict=True)
        ],
        schema=DUPLICATE_SCHEMA,
    )


def _first_similar(
    hashes: NDArray[np.uint8], first: NDArray[np.int64], max_bits: int
) -> NDArray[np.int64]:
    """Return for each of M different hashes the least `first` among those within `max_bits`.

    Two such hashes, cut into max_bits + 1 bands, agree in at least one band (pigeonhole): only
    pairs that do are compared.
    """
    result, bits = first.copy(), np.unpackbits(hashes, axis=1)

    # A band's bits as one integer key, so that equal bands are found by sorting.
    for band in np.array_split(np.arange(bits.shape[1]), max_bits + 1) if max_bits else ():
        keys = np.zeros((len(hashes), 8), np.uint8)
        packed = np.packbits(bits[:, band], axis=1)
        keys[:, : packed.shape[1]] = packed

        for one, other in _equal_pairs(keys.view(np.uint64).ravel()):
            near = _num_bits(hashes[one], hashes[other]) <= max_bits
            one, other = one[near], other[near]
            # Several pairs may name one photograph: `minimum.at` takes all of them into account.
            np.minimum.at(result, one, first[other])
            np.minimum.at(result, other, first[one])
    return result


def _equal_pairs(keys: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield every pair of positions with equal keys once, in batches of at most one pair a key."""
    # In the sorted order equal keys are neighbors: pair each with the next, the one after it, ...
    order = np.argsort(keys, kind="stable")
    ends = np.searchsorted(keys[order], keys[order], side="right")
    left, distance = np.arange(len(keys)), 1
    while len(left := left[left + distance < ends[left]]):
        yield order[left], order[left + distance]
        distance += 1


def _num_bits(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.unpackbits(one ^ other, axis=1).sum(axis=1, dtype=np.int64)


def find_near_duplicates(
    folder: Folder, changes: UpdatePlan, new_ledgers: Sequence[str], max_bits: int
) -> pa.Table:
    """Return the near-duplicates that an update keeps or brings: DUPLICATE_SCHEMA and `etag`.

    Args:
        folder: of the database.
        changes: the plan of the update.
        new_ledgers: paths of the ledgers that the update has stored.
        max_bits: near-duplicates differ in at most so many bits.
    """
    # Hashes of photographs that stay, then of the new ones; a replaced photograph has its new hash.
    hashes = dict(changes.staying_hashes)
    for path in new_ledgers:
        ledger = folder.read_table(path, ["image_id", "status", "phash"])
        stored = ledger.filter(pc.equal(ledger["status"], SUCCESS))
        hashes |= dict(
            zip(stored["image_id"].to_pylist(), stored["phash"].to_pylist(), strict=True)
        )

    values = np.frombuffer(bytes.fromhex("".join(hashes.values())), np.uint8).reshape(
        -1, HASH_BYTES
    )
    table = near_duplicates(list(hashes), values, max_bits)

    # The etag says of which bytes this was found.
    etags = etags_of(changes.taken)
    found = table["image_id"].to_pylist()
    table = table.append_column(
        "etag", pa.array([etags.get(image_id) for image_id in found], pa.string())
    )

    # Photographs removed on request took part in the comparison, but are not in the listing.
    return table.filter(pc.is_valid(table["etag"]))
