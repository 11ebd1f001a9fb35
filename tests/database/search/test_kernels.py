from __future__ import annotations

from typing import Any

import numba
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba.core import caching

from rdm.database.search import kernels
from rdm.database.search.exact import canonical_similarities
from rdm.database.search.scores import DEAD


@given(st.integers(0, 2**32), st.integers(1, 100))
def test_similarities_are_the_sums_of_exact_products(seed: int, dim: int) -> None:
    """Subnormal numbers and either sign included: whole multiples of 2^-48 here, so that float64
    sums exactly."""
    rng = np.random.default_rng(seed)
    # below 2^-8
    bits = rng.integers(0, 0x1C00, (2, 3, dim)) | rng.integers(0, 2, (2, 3, dim)) << 15
    vectors = bits.astype(np.uint16).view(np.float16)
    found = canonical_similarities(vectors[:, 0], vectors)
    exact = (vectors[:, :1].astype(np.float64) * vectors.astype(np.float64)).sum(axis=-1)
    assert found.tobytes() == exact.astype(np.float32).tobytes()


def considered(
    scores: list[int], floor: float = -np.inf, dead: int = 0
) -> tuple[list[int], list[float]]:
    """Return the best two of four vectors whose similarities with the query are 0.5, 0.25, 0.5 and
    -0.5."""
    vectors = np.array([[0.5], [0.25], [0.5], [-0.5]], np.float16).view(np.uint16)
    ids, best = np.full((1, 2), -1), np.full((1, 2), -np.inf, np.float32)
    taken = np.array([scores], np.int32)
    taken[:, :dead] = DEAD
    kernels.consider(
        taken, taken.reshape(1, 2, 2).max(axis=2), np.array([[1, 1, 0, 0]], np.float32),
        np.array([[0.125, 0, 0]] * 2, np.float32), 0.0, np.array([floor], np.float32),
        np.ones((1, 1)), vectors, 100, ids, best,
    )  # fmt: skip
    return ids[0].tolist(), best[0].tolist()


def test_the_nearest_come_in_order_and_equal_ones_by_id() -> None:
    assert considered([4, 2, 4, -4]) == ([100, 102], [0.5, 0.5])


def test_vectors_that_may_not_be_found_are_not_though_little_else_is_there() -> None:
    assert considered([4, 2, 4, -4], dead=3) == ([103, -1], [-0.5, -np.inf])


def test_scores_that_do_not_reach_the_floor_are_not_compared() -> None:
    assert considered([3, 4, 3, 3], floor=0.5) == ([101, -1], [0.25, -np.inf])


def test_loops_are_compiled_where_nothing_can_be_kept() -> None:
    """numba keeps nothing of a function that no file holds."""
    made: dict[str, Any] = {}
    exec("def double(number):\n    return 2 * number", made)
    double = kernels._compiled(numba.int64(numba.int64))(made["double"])
    assert double(3) == 6
    assert isinstance(vars(double)["_cache"], caching.NullCache)
