"""Neighbors as a request wants them: of several databases, without some, and some by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rdm.config import digest_json
from rdm.database import RetrievalDatabase
from rdm.encoders import normalize
from rdm.errors import UsageError
from rdm.generators.model_folder import ModelInfo
from rdm.generators.neighbor_vectors import conditioning_vectors
from rdm.sampling.request.sample_request import Exclusions, Request

EXACT_PATCHES = 200_000
"""Up to so many patches a look-up compares with every vector, in milliseconds; larger databases
are asked by their index."""

PatchAt = tuple[str, int]
"""The name of a database, and a patch in it."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Neighbors of one picture, those chosen by hand before the others.

    Attributes:
        patches: [k].
        similarities: float32 [k].
        weights: [k], factors on the attention that each gets.
    """

    patches: tuple[PatchAt, ...]
    similarities: NDArray[np.float32]
    weights: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Pool:
    """The nearest patches of one query in each database, best first.

    Attributes:
        ids: int64 [l] of each database.
        similarities: float32 [l] of each database.
    """

    ids: tuple[NDArray[np.int64], ...]
    similarities: tuple[NDArray[np.float32], ...]


class NeighborSearch:
    """The look-up of one request's neighbors.

    Raises:
        UsageError: a database is not open, or is of another version than the request's; a patch is
            of no such database, or nothing has an excluded name.
        DatabaseError: a patch was deleted, or was never there.
        EncoderMismatchError: a database does not belong to the model's encoder.
    """

    def __init__(
        self, request: Request, info: ModelInfo, databases: Mapping[str, RetrievalDatabase]
    ) -> None:
        retrieval, config = request.retrieval, info.generator.conditions.neighbors
        assert config is not None
        self._retrieval = retrieval
        self._embedding: Literal["unit", "raw"] = config.embedding
        weights = {one.name: one.weight for one in retrieval.databases}
        self.names = tuple(weights) or tuple(databases)[:1]
        self.databases = {name: _opened(databases, name) for name in self.names}
        for one in retrieval.databases:
            _check_version(self.databases[one.name], one.version)
        for database in self.databases.values():
            info.check_database(database)

        # The share of each database that is searched.
        shares = [(name, weights.get(name, 1.0)) for name in self.names]
        self._searched = [(name, weight) for name, weight in shares if weight > 0]

        # What is chosen by hand must be there, and not excluded by the same request.
        self.include = [self.patch_at(patch) for patch in retrieval.include]
        self._weights = {self.patch_at(p): weight for p, weight in retrieval.weights.items()}
        for name, patch_id in [*self.include, *self._weights]:
            self.databases[name].require_living(np.array([patch_id]))
        self._refuse_excluded(self.include)
        check_by_hand(request)
        self.num_drawn = num_looked_up(request)

    @property
    def first(self) -> RetrievalDatabase:
        """The database of the encoder, of p_D, and of patches that are named by their id alone."""
        return self.databases[self.names[0]]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the databases' versions and weights."""
        versions = [one.version.model_dump(mode="json") for one in self.databases.values()]
        if len(versions) == 1:
            return digest_json(versions[0])
        weights = [one.weight for one in self._retrieval.databases]
        return digest_json([versions, weights])

    @cached_property
    def excluded(self) -> dict[str, NDArray[np.int64]]:
        """The sorted ids that may not be found, by database."""
        return _excluded_ids(self._retrieval.exclude, self.databases, self.patch_at)

    def patch_at(self, patch: str) -> PatchAt:
        """Return where a patch of the request is; `77` is in the first database.

        Raises:
            UsageError: its database is not among the request's.
        """
        name, _, number = patch.rpartition(":")
        if name and name not in self.databases:
            raise UsageError(
                f"patch {patch!r} names a database that the request does not",
                where=name,
                fix=f"one of: {', '.join(self.names)}",
            )
        return name or self.names[0], int(number)

    def check_query_patch(self, patch: PatchAt) -> None:
        """Raise where a patch cannot be a query or a token: it is deleted, unknown or excluded."""
        self.databases[patch[0]].require_living(np.array([patch[1]]))
        self._refuse_excluded([patch])

    def vectors(
        self, patches: Sequence[PatchAt], embedding: Literal["unit", "raw"] | None = None
    ) -> NDArray[np.float32]:
        """Return the embeddings [N, D] of patches, by default as the model reads them."""
        vectors = np.zeros((len(patches), self.first.version.embedding_dim), np.float32)
        for name, database in self.databases.items():
            rows = [row for row, (at, _) in enumerate(patches) if at == name]
            ids = np.array([patches[row][1] for row in rows], np.int64)
            if rows:
                vectors[rows] = conditioning_vectors(database, ids, embedding or self._embedding)
        return vectors

    def token_of(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an embedding of the encoder's own length [D] as the model reads it."""
        return raw if self._embedding == "raw" else normalize(raw)

    def pools(self, vectors: NDArray[np.float32], own: Sequence[PatchAt] = ()) -> list[Pool]:
        """Return the pools of queries, from which each picture's neighbors are drawn.

        Args:
            vectors: unit vectors [Q, D].
            own: a patch of each query that its pool may not have; none: nothing of the kind.
        """
        count = self.num_drawn
        asked = max(count, self._retrieval.pool or count) if count else 0
        sizes = [
            max(share, least)
            for share, least in zip(self._shared(asked), self._shared(count), strict=True)
        ]
        found = [
            self._search(name, vectors, size, own)
            for (name, _), size in zip(self._searched, sizes, strict=True)
        ]
        return [
            Pool(tuple(ids[row] for ids, _ in found), tuple(some[row] for _, some in found))
            for row in range(len(vectors))
        ]

    @property
    def may_weigh_nothing(self) -> bool:
        """Whether so many patches have weight 0 that a picture may have no others."""
        zeros = sum(weight == 0 for weight in self._weights.values())
        return zeros > 0 and zeros >= self.num_drawn + len(self.include)

    def choose(
        self,
        pool: Pool,
        seed: int,
        by_hand: Sequence[PatchAt],
        vector: NDArray[np.float32],
    ) -> Chosen:
        """Return a picture's neighbors: some by hand, and the others drawn of its pool by its seed.

        Args:
            pool: of its query.
            seed: of the picture.
            by_hand: those that come first.
            vector: the query's unit vector [D], for the similarities of those by hand.

        Raises:
            UsageError: the weights of all are 0.
        """
        # Each database draws its own share, from the seed and its place among them.
        count = self.num_drawn
        factors = self._factors(count)
        rows: list[tuple[float, PatchAt, float]] = []
        for place, ((name, _), num) in enumerate(
            zip(self._searched, self._shared(count), strict=True)
        ):
            ids, similarities = pool.ids[place], pool.similarities[place]
            for i in _drawn(len(ids), num, seed, place):
                rows.append((float(similarities[i]), (name, int(ids[i])), factors[place]))
        # A stable sort: ties stay in the order of the databases and of the search.
        rows.sort(key=lambda row: -row[0])
        rows = [(self._similarity(vector, at), at, 1.0) for at in by_hand] + rows

        weights = tuple(factor * self._weights.get(at, 1.0) for _, at, factor in rows)
        if rows and not any(weights):
            raise UsageError(
                "the weights of all neighbors of a picture are 0, so nothing would condition it",
                where=", ".join(str(at[1]) for _, at, _ in rows),
                fix="give one of them a weight, or exclude them, so that others are found",
            )
        similarities = np.array([row[0] for row in rows], np.float32)
        return Chosen(tuple(at for _, at, _ in rows), similarities, weights)

    def _search(
        self, name: str, vectors: NDArray[np.float32], size: int, own: Sequence[PatchAt]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if size == 0:
            empty = (len(vectors), 0)
            return np.zeros(empty, np.int64), np.zeros(empty, np.float32)
        # Those by hand are tokens already. A query's own patch is one more that may be found.
        hidden = [i for at, i in self.include if at == name]
        excluded = np.union1d(self.excluded[name], np.array(hidden, np.int64))
        database = self.databases[name]
        ids, similarities = database.search_vectors(
            vectors,
            size + any(at == name for at, _ in own),
            exact=database.version.num_live_patches <= EXACT_PATCHES,
            excluded=excluded,
        )
        if ids.shape[1] == size:
            return ids, similarities
        kept = ids != np.array([i if at == name else -1 for at, i in own])[:, None]
        kept[kept.all(axis=1), -1] = False
        shape = (len(vectors), size)
        return ids[kept].reshape(shape), similarities[kept].reshape(shape)

    def _shared(self, count: int) -> list[int]:
        """Return how many of `count` neighbors each searched database gives: largest remainders."""
        weights = np.array([weight for _, weight in self._searched])
        exact = count * weights / weights.sum()
        shares = np.floor(exact).astype(int)
        # Ties go to the database that is named first.
        order = np.argsort(-(exact - shares), kind="stable")
        shares[order[: count - shares.sum()]] += 1
        if count and (shares == 0).any():
            raise UsageError(
                f"{count} neighbors cannot be shared by {len(shares)} databases of these weights: "
                f"{self._searched[int(np.argmin(shares))][0]} would give none",
                where="databases",
                fix="raise k, or the weight of that database, or leave it out",
            )
        return shares.tolist()

    def _factors(self, count: int) -> list[float]:
        """Return what makes up for shares that are not whole: k w neighbors' worth of attention."""
        total = sum(weight for _, weight in self._searched)
        pairs = zip(self._searched, self._shared(count), strict=True)
        wanted = [(count * weight / total, num) for (_, weight), num in pairs]
        return [
            1.0 if num == 0 or abs(share - num) < 1e-9 else share / num for share, num in wanted
        ]

    def _similarity(self, vector: NDArray[np.float32], at: PatchAt) -> float:
        ids = np.array([[at[1]]])
        return float(self.databases[at[0]].similarities(vector[None], ids)[0, 0])

    def _refuse_excluded(self, patches: Sequence[PatchAt]) -> None:
        for name, patch_id in patches:
            if patch_id in self.excluded[name]:
                raise UsageError(
                    f"patch {patch_id} is asked for and excluded",
                    where=name,
                    fix="leave one of the two out",
                )


def num_looked_up(request: Request) -> int:
    """Return how many neighbors of a picture are looked up: k less the tokens that are given."""
    retrieval = request.retrieval
    if retrieval.tokens == "query":
        return 0
    return request.settings.k - (retrieval.tokens == "query+neighbors") - len(retrieval.include)


def check_by_hand(request: Request) -> None:
    """Raise UsageError where neighbors by hand do not fit into k."""
    k, tokens = request.settings.k, request.retrieval.tokens
    by_hand = len(request.retrieval.include)
    if not by_hand:
        return

    # The query alone leaves no token for them.
    if tokens == "query":
        raise UsageError(
            "the query alone is to condition, and neighbors are given by hand",
            where="tokens",
            fix="tokens: query+neighbors, or leave the neighbors out",
        )

    # The query itself may take one of the k places.
    if num_looked_up(request) < 0:
        raise UsageError(
            f"{by_hand} neighbors are given by hand, but k = {k} has room for "
            f"{num_looked_up(request) + by_hand}",
            where="include",
            fix=f"raise k to {k - num_looked_up(request)}",
        )

    # Without a query nothing finds the others.
    if "neighbors" in request.kinds and (by_hand < k or tokens != "neighbors"):
        raise UsageError(
            f"{by_hand} neighbors are given by hand and no query that would find others, "
            f"but k = {k}",
            where="include",
            fix=f"k = {by_hand} and tokens: neighbors, or ask with a text",
        )


def _opened(databases: Mapping[str, RetrievalDatabase], name: str) -> RetrievalDatabase:
    if name in databases:
        return databases[name]
    raise UsageError(
        f"there is no database {name!r} here",
        where="databases",
        fix=f"one of: {', '.join(databases) or 'none is open'}",
    )


def _check_version(database: RetrievalDatabase, wanted: int | None) -> None:
    if wanted is not None and wanted != database.version.number:
        raise UsageError(
            f"the request is of version {wanted}, the database is open at version "
            f"{database.version.number}",
            where=database.folder.url,
            fix="open that version, or take the version out of the request",
        )


def _excluded_ids(
    exclude: Exclusions,
    databases: Mapping[str, RetrievalDatabase],
    patch_at: Callable[[str], PatchAt],
) -> dict[str, NDArray[np.int64]]:
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in databases}
    for name, patch_id in map(patch_at, exclude.patches):
        found[name].append(np.array([patch_id], np.int64))

    # A misspelled name would exclude nothing in silence: one that was never there is refused.
    columns = {
        "image_id": exclude.photographs,
        "author": exclude.authors,
        "license": exclude.licenses,
    }
    for column, values in columns.items():
        for value in values:
            matches = {name: db.patches_where(column, [value]) for name, db in databases.items()}
            if not any(map(len, matches.values())) and not _was_there(databases, column, value):
                raise UsageError(
                    f"nothing is excluded by the {column} {value!r}: no patch has it",
                    where=", ".join(databases),
                    fix="take it from a neighbor's record, as `rdm database search` shows it",
                )
            for name, ids in matches.items():
                found[name].append(ids)
    empty = np.zeros(0, np.int64)
    return {name: np.unique(np.concatenate([empty, *some])) for name, some in found.items()}


def _was_there(databases: Mapping[str, RetrievalDatabase], column: str, value: str) -> bool:
    """Return whether deleted patches had a value: what is gone is excluded already."""
    for database in databases.values():
        # A compaction empties rows, and keeps the ids of photographs that were removed on request.
        if column == "image_id" and value in database.version.deleted_image_ids:
            return True
        if len(database.patches_where(column, [value], deleted=True)):
            return True
    return False


def _drawn(size: int, count: int, seed: int, place: int) -> list[int]:
    """Return places in a pool of `size`, ascending: `count` of them, drawn by a picture's seed."""
    if count == size:
        return list(range(size))
    # A stream of its own: the choice must not be tied to the noise, which has the same seed.
    stream = np.random.default_rng([seed, 0xC1, place])
    return sorted(stream.choice(size, count, replace=False).tolist())
