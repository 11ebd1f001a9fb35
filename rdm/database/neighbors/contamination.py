"""Contamination: photographs of a query set that the database holds too, equal or nearly so.

A network that is trained on such a crop learns to copy its first neighbor; a measurement on such a
photograph flatters. Sameness is of the files' bytes, or of image ids where they mean the same
photograph. Nearness is the cosine similarity of a crop and a patch, as far as the neighbor table
goes: its excluded patches and its neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rdm.config import Record
from rdm.database.neighbors.exclusion import Lookup
from rdm.database.neighbors.lookup import photograph_matches
from rdm.database.neighbors.same_photographs import PhotographMatches
from rdm.database.neighbors.table import NeighborConfig, NeighborTable, stored_lookup
from rdm.database.reader import RetrievalDatabase
from rdm.database.search.exact import canonical_similarities
from rdm.errors import UsageError
from rdm.progress import tracking

Match = Literal["bytes", "image id", "similarity"]


class Pair(Record):
    """A query photograph and one of the database, by their most similar crop and patch."""

    query_image: str
    image_id: str
    match: Match
    similarity: float
    crop_key: str
    patch_id: int
    excluded: bool
    """Whether the table's options keep every such patch out of the neighbors of those crops."""


class SharedCounts(Record):
    """How much a query set shares with the database."""

    name: str
    version: int
    threshold: float
    num_photographs: int
    num_crops: int
    same_photographs: int
    """Query photographs that the database holds: by bytes or image id."""
    near_photographs: int
    """The others with a crop that has a near-duplicate patch."""
    near_crops: int
    """Crops with a patch at least as similar as the threshold, of whichever photograph."""


class ContaminationSummary(SharedCounts):
    """The counts, and how many pairs there are."""

    pairs: int
    pairs_not_excluded: int


class Contamination(SharedCounts):
    """The overlap of query set and database, the same photographs first, then by similarity."""

    pairs: tuple[Pair, ...]

    @property
    def leaks(self) -> tuple[Pair, ...]:
        """The pairs that the table's options do not exclude."""
        return tuple(pair for pair in self.pairs if not pair.excluded)

    def summary(self) -> ContaminationSummary:
        """Return the counts, and how many pairs can still become neighbors."""
        counts = {name: value for name, value in self if name != "pairs"}
        return ContaminationSummary(
            **counts, pairs=len(self.pairs), pairs_not_excluded=len(self.leaks)
        )


def measure_contamination(
    database: RetrievalDatabase, name: str, threshold: float = 0.95
) -> Contamination:
    """Compare a query set's photographs, whose neighbors are stored, with the database's.

    Args:
        database: the version.
        name: of the query set.
        threshold: cosine similarity in (0, 1] from which on a patch is a near-duplicate of a crop.

    Raises:
        DatabaseError: there are no neighbors of that name.
        UsageError: the threshold is no similarity.
    """
    if not 0 < threshold <= 1:
        raise UsageError(
            f"{threshold} is not a similarity", fix="give --threshold a number above 0, at most 1"
        )

    # Photographs that are the same, by their bytes or ids.
    table = NeighborTable(database.folder, name, database.version)
    crops = pa.concat_tables(
        [table.table(stem).select(["key", "sha256"]) for stem in table.info.stems]
    )
    matches = photograph_matches(database, crops, table.config)

    # Pairs of photographs, each by its most similar crop and patch.
    best: dict[tuple[str, str], Pair] = {}
    near_crops = 0
    with tracking("contamination", len(table.info.stems), "shards") as tracker:
        for shard, num_near in _shards(table, matches, threshold):
            near_crops += num_near
            for pair in _pairs(database, shard, matches, table.config):
                place = (pair.query_image, pair.image_id)
                best[place] = _merged(best[place], pair) if place in best else pair
            tracker.advance()

    # Same photographs first, then the most similar.
    pairs = sorted(
        best.values(),
        key=lambda p: (p.match == "similarity", -p.similarity, p.query_image, p.image_id),
    )
    same = {pair.query_image for pair in pairs if pair.match != "similarity"}

    return Contamination(
        name=name,
        version=database.version.number,
        threshold=threshold,
        num_photographs=len({key.rpartition("/")[0] for key in crops["key"].to_pylist()}),
        num_crops=crops.num_rows,
        same_photographs=len(same),
        near_photographs=len({pair.query_image for pair in pairs} - same),
        near_crops=near_crops,
        pairs=tuple(pairs),
    )


def _merged(one: Pair, other: Pair) -> Pair:
    """Return the nearer of two pairs of the same photographs, excluded only if both are."""
    nearer = other if other.similarity > one.similarity else one
    return nearer.model_copy(update={"excluded": one.excluded and other.excluded})


def _near_patches(lookup: Lookup, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and patch ids of neighbors and excluded patches with at least this similarity."""
    ids = np.concatenate([lookup.excluded[0], lookup.neighbors[0]], axis=1)
    similarities = np.concatenate([lookup.excluded[1], lookup.neighbors[1]], axis=1)
    rows, columns = np.nonzero(similarities >= np.float32(threshold))
    return rows, ids[rows, columns]


@dataclass(frozen=True, eq=False)
class _Shard:
    """A shard's crops, numbered from `first`: keys [N], vectors [N, dim].

    And pairs [P]: a crop's row and the patch that is the same or near.
    """

    first: int
    keys: list[str]
    vectors: NDArray[np.float16]
    rows: NDArray[np.int64]
    patch_ids: NDArray[np.int64]


def _shards(
    table: NeighborTable, matches: PhotographMatches, threshold: float
) -> Iterator[tuple[_Shard, int]]:
    """Yield each shard with its pairs, and the number of its crops that have a near patch."""
    # `same_crops` ascends, so a shard's own pairs are one slice of it.
    same_crops, same_ids = matches.same_patches()
    first = 0

    for stem in table.info.stems:
        rows = table.table(stem)
        near = _near_patches(stored_lookup(rows, table.config.k_stored), threshold)
        own = slice(*np.searchsorted(same_crops, [first, first + rows.num_rows]))
        shard = _Shard(
            first,
            rows["key"].to_pylist(),
            np.asarray(table.embeddings(stem)),
            np.concatenate([same_crops[own] - first, near[0]]),
            np.concatenate([same_ids[own], near[1]]),
        )
        yield shard, len(np.unique(near[0]))
        first += rows.num_rows


def _pairs(
    database: RetrievalDatabase, shard: _Shard, matches: PhotographMatches, config: NeighborConfig
) -> Iterator[Pair]:
    """Yield each pair of a shard: its similarity, how it matches, and whether it is excluded."""
    if not len(shard.rows):
        return

    # The photographs are the same where the patch's group is its crop's; crops count from `first`.
    by_bytes, by_id = matches.groups(shard.patch_ids)
    same_bytes = by_bytes == matches.byte_group[shard.first + shard.rows]
    same = same_bytes | (by_id == matches.id_group[shard.first + shard.rows])

    # Exact similarities, as the table's neighbors have them.
    candidates = database.embeddings(shard.patch_ids)[:, None]
    similarities = canonical_similarities(shard.vectors[shard.rows], candidates)[:, 0]

    # What the table's own options leave out of the neighbors.
    excluded = same & config.exclude_self
    if config.exclude_above is not None:
        excluded |= similarities >= np.float32(config.exclude_above)

    image_ids = database.patch_rows(shard.patch_ids)["image_id"].to_pylist()
    for place, (row, patch_id) in enumerate(
        zip(shard.rows.tolist(), shard.patch_ids.tolist(), strict=True)
    ):
        yield Pair(
            query_image=shard.keys[row].rpartition("/")[0],
            image_id=image_ids[place],
            match="bytes" if same_bytes[place] else "image id" if same[place] else "similarity",
            similarity=float(similarities[place]),
            crop_key=shard.keys[row],
            patch_id=patch_id,
            excluded=bool(excluded[place]),
        )
