"""The rule of exclusion: patches of photographs that the query set shares, and near-duplicates."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.neighbors.exclusion import Neighbors
from rdm.database.reader import RetrievalDatabase
from rdm.storage import living_rows

# schemes whose image ids name the same photograph in every source
GLOBAL_IDS = ("openimages", "samples")
_NONE = -2  # a patch whose photograph is none of those compared


def share_image_ids(one: str, other: str) -> bool:
    """Return whether equal image ids of two sources mean the same photograph."""
    return one == other or (_scheme(one) == _scheme(other) and _scheme(one) in GLOBAL_IDS)


class PhotographMatches:
    """Matches each patch of a database with the photographs of some crops, part by part."""

    def __init__(self, database: RetrievalDatabase, crops: pa.Table, *, by_image_id: bool) -> None:
        """Prepare the comparison.

        Args:
            database: whose photographs are compared.
            crops: a row for each crop [M]: its `key`, which begins with the image id, and the
                `sha256` of its photograph's file.
            by_image_id: whether an equal image id means the same photograph, besides equal bytes.
        """
        self.database = database
        # Equal values get one number among the crops' values: a group.
        self._bytes, self.byte_group = _distinct(crops["sha256"])
        self._ids, self.id_group = _distinct(
            pc.replace_substring_regex(crops["key"], pattern="/[0-9]+$", replacement="")
        )
        self._by_image_id = by_image_id
        # Parts are read when they are needed, and kept.
        self._known: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._starts = np.array([first for first, _ in database.parts], np.int64)

    def groups(self, patch_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the groups [...] of patches [...] by bytes and by image id; negative: none."""
        result = np.full((2, *patch_ids.shape), _NONE, np.int64)
        owner = np.searchsorted(self._starts, patch_ids, side="right") - 1

        # One look at each part that owns some of the patches.
        for part in np.unique(owner[patch_ids >= 0]):
            inside = (owner == part) & (patch_ids >= 0)
            for values, own in zip(result, self.part(int(part)), strict=True):
                values[inside] = own[patch_ids[inside] - self._starts[part]]

        return result[0], result[1]

    def part(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the two groups [N] of the patches of one part."""
        """Return the groups [N] by bytes and by image id of the patches of one part."""
        if number not in self._known:
            version, folder = self.database.version, self.database.folder
            patches = folder.read_table(
                version.parts_of("patches")[number].path, ["image_id", "image_row"]
            )
            ledger = folder.read_table(version.parts_of("ledger")[number].path, ["sha256"])

            # A compacted row has no photograph. It is dead, and never a candidate.
            rows = patches["image_row"].to_numpy()
            places = pa.array(rows, mask=rows < 0)
            digests = ledger["sha256"].combine_chunks().take(places)
            image_ids = (
                patches["image_id"]
                if self._by_image_id
                else pa.nulls(patches.num_rows, pa.string())
            )
            self._known[number] = (_index_in(digests, self._bytes), _index_in(image_ids, self._ids))
        return self._known[number]

    def same_patches(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the living patches of the crops' own photographs.

        Returns:
            Crop numbers [P], ascending, and patch ids [P].
        """
        crops, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]

        # Crops sorted by group, so that the crops of one group are a slice.
        members = [
            (group, np.argsort(group, kind="stable")) for group in (self.byte_group, self.id_group)
        ]

        for number, (first, vectors) in enumerate(self.database.parts):
            alive = living_rows(self.database.tombstones, first, len(vectors))
            for groups, (own, order) in zip(self.part(number), members, strict=True):
                # Pair every patch of a group with each of its crops, which `within` counts.
                positions = np.flatnonzero((groups >= 0) & alive)
                starts = np.searchsorted(own, groups[positions], "left", order)
                counts = np.searchsorted(own, groups[positions], "right", order) - starts
                within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
                crops.append(order[np.repeat(starts, counts) + within])
                ids.append(np.repeat(positions + first, counts))

        # A pair by bytes and by image id is one pair.
        pairs = np.unique(np.stack([np.concatenate(crops), np.concatenate(ids)], axis=1), axis=0)
        return pairs[:, 0], pairs[:, 1]


class Exclusion:
    """The rule for the crops of one shard of a query set.

    Args:
        matches: the photographs of the crops among the database's; None: they are not compared.
        above: a patch at least this similar is a near-duplicate; None: it is a neighbor.
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


def _distinct(values: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the different values, and for each of [M] its position among them."""
    encoded = values.combine_chunks().dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


def _index_in(values: Any, among: pa.Array) -> NDArray[np.int64]:
    """Return each value's position [N] among the others; `_NONE` of null and unknown values."""
    found = pc.index_in(values, value_set=among, skip_nulls=True)
    return pc.fill_null(found, _NONE).to_numpy(zero_copy_only=False).astype(np.int64)


def _scheme(spec: str) -> str:
    return spec.partition("://")[0]
