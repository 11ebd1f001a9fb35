"""The rule by which patches are excluded: photographs of a query set that are in the database too, near-duplicates."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.exclusion import Neighbors
from rdm.database.facade import RetrievalDatabase

GLOBAL_IDS = ("openimages", "samples")  # schemes whose image ids name the same photograph in every source
_NONE = -2  # a patch whose photograph is none of those compared


@dataclass(frozen=True)
class CropPhotographs:
    """The photograph of every crop of a shard: its image id, and the SHA-256 of its file in hexadecimal."""

    image_ids: Sequence[str]
    sha256: Sequence[str]


def share_image_ids(one: str, other: str) -> bool:
    """Return whether equal image ids of two sources mean the same photograph."""
    return one == other or (_scheme(one) == _scheme(other) and _scheme(one) in GLOBAL_IDS)


class PhotographMatches:
    """Which patches of a database were cut from which of some photographs, part by part and read when asked."""

    def __init__(
        self, database: RetrievalDatabase, photographs: CropPhotographs, *, by_image_id: bool | None = None
    ) -> None:
        """Prepare the comparison.

        Args:
            database: whose photographs are compared.
            photographs: what they are compared with.
            by_image_id: whether an equal image id means the same photograph, besides equal bytes.
        """
        self.database = database
        self._bytes, self.byte_group = np.unique(np.array(photographs.sha256, object), return_inverse=True)
        self._ids, self.id_group = np.unique(np.array(photographs.image_ids, object), return_inverse=True)
        self._by_image_id = by_image_id
        self._known: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._starts = np.array([first for first, _ in database.parts], np.int64)

    def groups(self, patch_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the groups [...] of patches [...] by equal bytes and by equal image id; negative: of none."""
        result = np.full((2, *patch_ids.shape), _NONE, np.int64)
        owner = np.searchsorted(self._starts, patch_ids, side="right") - 1
        for part in np.unique(owner[patch_ids >= 0]):
            inside = (owner == part) & (patch_ids >= 0)
            for values, own in zip(result, self.part(int(part)), strict=True):
                values[inside] = own[patch_ids[inside] - self._starts[part]]
        return result[0], result[1]

    def part(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the two groups [N] of the patches of one part."""
        if number not in self._known:
            version, folder = self.database.version, self.database.folder
            patches = folder.read_table(version.parts_of("patches")[number].path, ["image_id", "image_row"])
            ledger = folder.read_table(version.parts_of("ledger")[number].path, ["sha256"])
            rows = patches["image_row"].to_numpy()
            digests = pa.array(ledger["sha256"].to_pylist(), pa.string()).take(
                pa.array(np.where(rows < 0, 0, rows))  # compacted: dead, and never asked for
            )
            image_ids = patches["image_id"] if self._by_image_id else pa.nulls(patches.num_rows, pa.string())
            self._known[number] = (_index_in(digests, self._bytes), _index_in(image_ids, self._ids))
        return self._known[number]


class Exclusion:
    """The rule for the crops of one shard of a query set.

    Args:
        matches: the photographs of the crops among those of the database; None: they are not looked at.
        above: a patch this similar or more is a near-duplicate; None: however similar, it is a neighbor.
    """

    def __init__(self, matches: PhotographMatches | None, above: float | None) -> None:
        self.matches = matches
        self.above = above

    def __call__(self, rows: NDArray[np.intp], candidates: Neighbors) -> NDArray[np.bool_]:
        """See Exclude."""
        ids, similarities = candidates
        result = np.zeros(ids.shape, np.bool_)
        if self.above is not None:
            result |= similarities >= np.float32(self.above)
        if self.matches is not None:
            by_bytes, by_id = self.matches.groups(ids)
            result |= by_bytes == self.matches.byte_group[rows][:, None]
            result |= by_id == self.matches.id_group[rows][:, None]
        return result


def _index_in(values: Any, among: NDArray[Any]) -> NDArray[np.int64]:
    found = pc.index_in(values, value_set=pa.array(among, pa.string()), skip_nulls=True)
    return pc.fill_null(found, _NONE).to_numpy(zero_copy_only=False).astype(np.int64)


def _scheme(spec: str) -> str:
    return spec.partition("://")[0]
