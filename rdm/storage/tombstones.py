"""The rows of a version's parts that live: those whose patch is no tombstone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdm.storage.records import Part, Version


@dataclass(frozen=True, eq=False)
class PartRows:
    """The rows of one part: row j is the patch `first + j`, and lives where `living[j]`."""

    part: Part
    first: int
    living: NDArray[np.bool_]


def living_rows(tombstones: NDArray[np.int64], first: int, count: int) -> NDArray[np.bool_]:
    """Return bool [count]: whether each of the patches from `first` on lives.

    Args:
        tombstones: sorted ids of all deleted patches.
        first: the patch id of the first row.
        count: how many rows.
    """
    # Tombstones are sorted, so those of the rows are one slice.
    low, high = np.searchsorted(tombstones, [first, first + count])
    living = np.ones(count, np.bool_)
    living[tombstones[low:high] - first] = False
    return living


def part_rows(version: Version, kind: str = "patches") -> Iterator[PartRows]:
    """Yield the parts of a kind that has a row for each patch, with their rows, in order."""
    tombstones, first = version.tombstone_ids(), 0
    for part in version.parts_of(kind):
        yield PartRows(part, first, living_rows(tombstones, first, part.num_rows))
        first += part.num_rows
