"""Repaired neighbors against those of a new lookup, on vectors so few and so coarse that ties are
common."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rdm.database.changes.compact import blank_vectors
from rdm.database.neighbors.exclusion import Exclude, Lookup, Neighbors, no_neighbors
from rdm.database.neighbors.repair import exact_lookup, merge_lookups, repair_neighbors

DIM, K = 3, 4
NONE = np.zeros(0, np.int64)


def coarse_vectors(seed: int, count: int) -> np.ndarray:
    """Unit vectors out of 26 directions."""
    points = np.random.default_rng(seed).integers(-1, 2, (count, DIM)).astype(np.float32)
    points[(points == 0).all(axis=1)] = 1
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


@dataclass
class Parts:
    vectors: list[np.ndarray] = field(default_factory=list)

    def opened(self) -> list[tuple[int, np.ndarray]]:
        starts = np.cumsum([0, *map(len, self.vectors)]).tolist()
        return list(zip(starts, self.vectors, strict=False))

    def __len__(self) -> int:
        return sum(map(len, self.vectors))


def rule_of(own: int, above: float) -> Exclude | None:
    """Every own-th patch, another for each crop, is of the crop's photograph (0: none); above 1: no
    near-duplicates."""
    if not own and above > 1:
        return None

    def exclude(rows: np.ndarray, candidates: Neighbors) -> np.ndarray:
        ids, similarities = candidates
        same = (ids - rows[:, None]) % own == 0 if own else np.zeros(ids.shape, np.bool_)
        return same | (similarities >= np.float32(above))

    return exclude


def brute_force(
    queries: np.ndarray, vectors: np.ndarray, dead: np.ndarray, exclude: Exclude
) -> list[tuple[list[int], list[int]]]:
    """Rank every patch, one crop after the other: the allowed ids, and the excluded that come
    before the last."""
    result = []
    for row, query in enumerate(queries):
        products = query.astype(np.float64) * vectors.astype(np.float64)
        similarities = np.ascontiguousarray(products).sum(axis=1).astype(np.float32)
        order = [
            i
            for i in np.lexsort((np.arange(len(vectors)), -similarities)).tolist()
            if i not in dead
        ]
        flags = (
            exclude(np.array([row]), (np.array([order]), similarities[order][None]))[0]
            if order
            else []
        )
        allowed, excluded = [], []
        for patch_id, flag in zip(order, flags, strict=True):
            if len(allowed) < K:
                (excluded if flag else allowed).append(patch_id)
        result.append((allowed, excluded))
    return result


class Changes(RuleBasedStateMachine):
    """Any sequence of adds, deletes and compactions; after each, the repaired neighbors are those
    of a new lookup."""

    @initialize(
        seed=st.integers(0, 2**16),
        count=st.integers(K, 30),
        num_queries=st.integers(0, 12),
        own=st.sampled_from([0, 0, 2, 5]),
        above=st.sampled_from([2, 1, 0.9, 0.5]),
    )
    def build(self, seed: int, count: int, num_queries: int, own: int, above: float) -> None:
        self.parts, self.dead = Parts([coarse_vectors(seed, count)]), NONE
        self.queries = coarse_vectors(seed + 1, num_queries)
        self.exclude = rule_of(own, above)
        self.stored = exact_lookup(self.queries, self.parts.opened(), K, NONE, self.exclude)

    def living(self) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self.parts)), self.dead)

    def repair(self, first_added: int) -> None:
        self.stored, _ = repair_neighbors(
            self.queries, self.stored, self.parts.opened(), first_added, self.dead, self.exclude
        )

    @rule(seed=st.integers(0, 2**16), counts=st.lists(st.integers(0, 6), max_size=3))
    def add(self, seed: int, counts: list[int]) -> None:
        first = len(self.parts)
        self.parts.vectors += [
            coarse_vectors(seed + number, count) for number, count in enumerate(counts)
        ]
        self.repair(first)

    @precondition(lambda self: len(self.living()) > K)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        living = self.living()
        gone = data.draw(
            st.lists(st.sampled_from(living.tolist()), max_size=len(living) - K, unique=True)
        )
        self.dead = np.union1d(self.dead, np.array(gone, np.int64))
        self.repair(len(self.parts))

    @precondition(lambda self: len(self.living()) > K)
    @rule(seed=st.integers(0, 2**16), count=st.integers(0, 6), data=st.data())
    def add_and_delete_at_once(self, seed: int, count: int, data: st.DataObject) -> None:
        living, first = self.living(), len(self.parts)
        gone = data.draw(
            st.lists(st.sampled_from(living.tolist()), max_size=len(living) - K, unique=True)
        )
        self.dead = np.union1d(self.dead, np.array(gone, np.int64))
        self.parts.vectors.append(coarse_vectors(seed, count))
        self.repair(first)

    @rule()
    def compact(self) -> None:
        for number, (first, vectors) in enumerate(self.parts.opened()):
            rows = np.isin(np.arange(first, first + len(vectors)), self.dead)
            self.parts.vectors[number] = blank_vectors(vectors, rows)

    @invariant()
    def neighbors_equal_a_rebuild(self) -> None:
        again = exact_lookup(self.queries, self.parts.opened(), K, self.dead, self.exclude)
        for repaired, new in (
            (self.stored.neighbors, again.neighbors),
            (self.stored.excluded, again.excluded),
        ):
            assert repaired[0].shape == new[0].shape
            assert repaired[0].tobytes() == new[0].tobytes()
            assert repaired[1].tobytes() == new[1].tobytes()


Changes.TestCase.settings = settings(max_examples=150, stateful_step_count=12, deadline=None)
TestAnySequenceOfChanges = pytest.mark.slow(Changes.TestCase)


@given(
    st.integers(0, 2**16),
    st.integers(0, 40),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([2, 0.9, 0.5, 0.01]),
    st.integers(0, 10),
)
def test_lookup_with_exclusions_is_that_of_brute_force(
    seed: int, count: int, own: int, above: float, num_dead: int
) -> None:
    vectors, queries = coarse_vectors(seed, count), coarse_vectors(seed + 1, 5)
    dead = np.sort(np.random.default_rng(seed).permutation(count)[:num_dead])
    exclude = rule_of(own, above)
    assert exclude is not None
    found = exact_lookup(queries, [(0, vectors)], K, dead, exclude)
    for row_number, (allowed, excluded) in enumerate(brute_force(queries, vectors, dead, exclude)):
        assert [i for i in found.neighbors[0][row_number].tolist() if i >= 0] == allowed
        assert [i for i in found.excluded[0][row_number].tolist() if i >= 0] == excluded


def row(*pairs: tuple[int, float]) -> Lookup:
    found = (
        np.array([[pair[0] for pair in pairs]]),
        np.array([[pair[1] for pair in pairs]], np.float32),
    )
    return Lookup(found, no_neighbors(1, 0))


def no_added() -> Lookup:
    return Lookup(no_neighbors(1, 2), no_neighbors(1, 0))


def merged_ids(
    stored: Lookup, added: Lookup, dead: np.ndarray
) -> tuple[list[list[int]], list[bool]]:
    merged, sure = merge_lookups(stored, added, dead)
    return merged.neighbors[0].tolist(), sure.tolist()


def test_row_without_a_dead_neighbor_stays_and_is_sure() -> None:
    stored = row((5, 0.9), (3, 0.5))
    merged, sure = merge_lookups(stored, no_added(), np.array([4]))
    assert merged.equals(stored)
    assert sure.tolist() == [True]


def test_nearer_added_patch_pushes_the_last_one_out() -> None:
    assert merged_ids(row((5, 0.9), (3, 0.5)), row((7, 0.75), (8, 0.25)), NONE) == (
        [[5, 7]],
        [True],
    )


def test_row_that_lost_a_neighbor_is_not_sure() -> None:
    assert merged_ids(row((5, 0.9), (3, 0.5)), no_added(), np.array([5])) == ([[3, -1]], [False])


def test_lost_neighbor_is_replaced_by_an_added_one_that_ranks_before_the_last() -> None:
    assert merged_ids(row((5, 0.9), (3, 0.5)), row((7, 0.75), (8, 0.25)), np.array([5])) == (
        [[7, 3]],
        [True],
    )


@pytest.mark.parametrize(("added", "sure"), [(2, True), (7, False)])
def test_added_patch_as_near_as_the_last_is_sure_only_where_its_id_is_smaller(
    added: int, sure: bool
) -> None:
    """A patch of an id between the last one's and the added one's may be as near, and was never
    stored."""
    stored, dead = row((5, 0.9), (3, 0.5)), np.array([5, 3])
    assert merged_ids(stored, row((added, 0.5), (9, 0.0)), dead)[1] == [False]
    assert merged_ids(stored, row((1, 0.5), (added, 0.5)), dead)[1] == [sure]


def test_excluded_patch_is_forgotten_when_the_last_neighbor_comes_before_it() -> None:
    stored = Lookup(row((5, 0.9), (3, 0.5)).neighbors, row((4, 0.6)).neighbors)
    merged, sure = merge_lookups(stored, row((7, 0.75), (8, 0.7)), NONE)
    assert (merged.neighbors[0].tolist(), merged.excluded[0].shape, sure.tolist()) == (
        [[5, 7]],
        (1, 0),
        [True],
    )


@given(st.integers(0, 2**16), st.integers(1, 5))
def test_only_rows_that_may_have_changed_are_looked_up_again(seed: int, count: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((60, 16)).astype(np.float32)
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    stored = exact_lookup(unit, [(0, unit)], K, NONE, None)
    dead = np.sort(np.random.default_rng(seed).permutation(60)[:count])
    _, searched = repair_neighbors(unit, stored, [(0, unit)], 60, dead)
    assert searched == np.isin(stored.neighbors[0], dead).any(axis=1).sum()


def test_adding_looks_nothing_up_again() -> None:
    vectors = coarse_vectors(0, 40)
    stored = exact_lookup(vectors, [(0, vectors[:30])], K, NONE, None)
    _, searched = repair_neighbors(
        vectors, stored, [(0, vectors[:30]), (30, vectors[30:])], 30, NONE
    )
    assert searched == 0
