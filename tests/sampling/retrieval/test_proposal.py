from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from rdm.errors import DatabaseError
from rdm.sampling.retrieval.proposal import Proposal

tables = arrays(
    np.int64, st.tuples(st.integers(1, 30), st.integers(1, 6)), elements=st.integers(0, 12)
)


@given(tables)
def test_the_counts_sum_to_k_times_the_number_of_queries(table: NDArray[np.int64]) -> None:
    proposal = Proposal.from_neighbors(table)
    assert proposal.total == table.size
    assert sum(Fraction(int(count), proposal.total) for count in proposal.counts) == 1


@given(tables)
def test_the_support_is_the_union_of_the_neighbors(table: NDArray[np.int64]) -> None:
    assert set(Proposal.from_neighbors(table).ids) == set(table.ravel())


@given(tables, st.floats(0.01, 1), st.floats(0.01, 1))
def test_truncations_are_nested(table: NDArray[np.int64], first: float, second: float) -> None:
    proposal = Proposal.from_neighbors(table)
    small, large = sorted([first, second])
    assert set(proposal.truncated(small).ids) <= set(proposal.truncated(large).ids)


@given(tables)
def test_the_effective_support_does_not_grow_when_truncated(table: NDArray[np.int64]) -> None:
    proposal = Proposal.from_neighbors(table)
    supports = [proposal.truncated(m).effective_support for m in (0.1, 0.3, 0.6, 1.0)]
    assert all(small <= large + 1e-9 for small, large in zip(supports, supports[1:], strict=False))


@given(tables)
def test_top_m_of_one_keeps_everything(table: NDArray[np.int64]) -> None:
    proposal = Proposal.from_neighbors(table)
    assert np.array_equal(proposal.truncated(1.0).ids, proposal.ids)


@pytest.mark.parametrize("top_m", [0, -0.1, 1.01])
def test_top_m_outside_its_range_is_refused(top_m: float) -> None:
    with pytest.raises(ValueError, match="top_m"):
        Proposal.from_neighbors(np.zeros((1, 1), np.int64)).truncated(top_m)


def test_draws_depend_on_their_own_seed_only() -> None:
    proposal = Proposal.from_neighbors(np.arange(50).reshape(10, 5))
    together = proposal.draw(np.arange(20))
    alone = [proposal.draw(np.array([seed]))[0] for seed in range(20)]
    assert together.tolist() == alone


def test_draws_follow_the_counts() -> None:
    proposal = Proposal.from_neighbors(np.array([[1, 1, 1, 2]]))
    drawn = proposal.draw(np.arange(4000))
    assert abs((drawn == 1).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)


def test_deleted_patches_are_never_proposed() -> None:
    proposal = Proposal.from_neighbors(np.array([[3, 4], [3, 5]])).without(np.array([3]))
    assert set(proposal.draw(np.arange(100))) == {4, 5}


def test_no_neighbors_is_an_error_and_not_a_uniform_fallback() -> None:
    with pytest.raises(DatabaseError, match="no neighbors"):
        Proposal.from_neighbors(np.zeros((0, 4), np.int64))
