"""Repaired neighbors against those of a new lookup, on vectors so few and so coarse that ties are common."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rdm.database.compact import blank_vectors
from rdm.database.repair import Neighbors, merge_neighbors, repair_neighbors
from rdm.database.search import blocks_of, exact_search

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


class Changes(RuleBasedStateMachine):
    """Any sequence of adds, deletes and compactions; after each, the repaired neighbors are those of a new lookup."""

    @initialize(seed=st.integers(0, 2**16), count=st.integers(K, 30), num_queries=st.integers(0, 12))
    def build(self, seed: int, count: int, num_queries: int) -> None:
        self.parts, self.dead = Parts([coarse_vectors(seed, count)]), NONE
        self.queries = coarse_vectors(seed + 1, num_queries)
        self.stored: Neighbors = exact_search(self.queries, self.parts.opened(), K, excluded=NONE)

    def living(self) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self.parts)), self.dead)

    def repair(self, first_added: int) -> None:
        self.stored, _ = repair_neighbors(self.queries, self.stored, self.parts.opened(), first_added, self.dead)

    @rule(seed=st.integers(0, 2**16), counts=st.lists(st.integers(0, 6), max_size=3))
    def add(self, seed: int, counts: list[int]) -> None:
        first = len(self.parts)
        self.parts.vectors += [coarse_vectors(seed + number, count) for number, count in enumerate(counts)]
        self.repair(first)

    @precondition(lambda self: len(self.living()) > K)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        living = self.living()
        gone = data.draw(st.lists(st.sampled_from(living.tolist()), max_size=len(living) - K, unique=True))
        self.dead = np.union1d(self.dead, np.array(gone, np.int64))
        self.repair(len(self.parts))

    @precondition(lambda self: len(self.living()) > K)
    @rule(seed=st.integers(0, 2**16), count=st.integers(0, 6), data=st.data())
    def add_and_delete_at_once(self, seed: int, count: int, data: st.DataObject) -> None:
        living, first = self.living(), len(self.parts)
        gone = data.draw(st.lists(st.sampled_from(living.tolist()), max_size=len(living) - K, unique=True))
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
        ids, similarities = exact_search(self.queries, blocks_of(self.parts.opened(), 7), K, excluded=self.dead)
        assert self.stored[0].tobytes() == ids.tobytes()
        assert self.stored[1].tobytes() == similarities.tobytes()


Changes.TestCase.settings = settings(max_examples=150, stateful_step_count=12, deadline=None)
TestAnySequenceOfChanges = Changes.TestCase


def row(*pairs: tuple[int, float]) -> Neighbors:
    return np.array([[pair[0] for pair in pairs]]), np.array([[pair[1] for pair in pairs]], np.float32)


def no_added() -> Neighbors:
    return np.full((1, 2), -1, np.int64), np.full((1, 2), -np.inf, np.float32)


def test_row_without_a_dead_neighbor_stays_and_is_sure() -> None:
    stored = row((5, 0.9), (3, 0.5))
    (ids, similarities), sure = merge_neighbors(stored, no_added(), np.array([4]))
    assert (ids.tolist(), similarities.tolist(), sure.tolist()) == (stored[0].tolist(), stored[1].tolist(), [True])


def test_nearer_added_patch_pushes_the_last_one_out() -> None:
    (ids, _), sure = merge_neighbors(row((5, 0.9), (3, 0.5)), row((7, 0.75), (8, 0.25)), NONE)
    assert (ids.tolist(), sure.tolist()) == ([[5, 7]], [True])


def test_row_that_lost_a_neighbor_is_not_sure() -> None:
    (ids, _), sure = merge_neighbors(row((5, 0.9), (3, 0.5)), no_added(), np.array([5]))
    assert (ids.tolist(), sure.tolist()) == ([[3, -1]], [False])


def test_lost_neighbor_is_replaced_by_an_added_one_that_ranks_before_the_last() -> None:
    (ids, _), sure = merge_neighbors(row((5, 0.9), (3, 0.5)), row((7, 0.75), (8, 0.25)), np.array([5]))
    assert (ids.tolist(), sure.tolist()) == ([[7, 3]], [True])


@pytest.mark.parametrize(("added", "sure"), [(2, True), (7, False)])
def test_added_patch_as_near_as_the_last_is_sure_only_where_its_id_is_smaller(added: int, sure: bool) -> None:
    """A patch of an id between the last one's and the added one's may be as near, and was never stored."""
    _, found = merge_neighbors(row((5, 0.9), (3, 0.5)), row((added, 0.5), (9, 0.0)), np.array([5, 3]))
    assert found.tolist() == [False]
    _, found = merge_neighbors(row((5, 0.9), (3, 0.5)), row((1, 0.5), (added, 0.5)), np.array([5, 3]))
    assert found.tolist() == [sure]


@given(st.integers(0, 2**16), st.integers(1, 5))
def test_only_rows_that_may_have_changed_are_looked_up_again(seed: int, count: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((60, 16)).astype(np.float32)
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    stored = exact_search(unit, [(0, unit)], K, excluded=NONE)
    dead = np.sort(np.random.default_rng(seed).permutation(60)[:count])
    _, searched = repair_neighbors(unit, stored, [(0, unit)], 60, dead)
    assert searched == np.isin(stored[0], dead).any(axis=1).sum()


def test_adding_looks_nothing_up_again() -> None:
    vectors = coarse_vectors(0, 40)
    stored = exact_search(vectors, [(0, vectors[:30])], K, excluded=NONE)
    _, searched = repair_neighbors(vectors, stored, [(0, vectors[:30]), (30, vectors[30:])], 30, NONE)
    assert searched == 0
