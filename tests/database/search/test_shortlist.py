from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdm.database.search.exact import quantize
from rdm.database.search.shortlist import product_error, rounded


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim))
    return quantize(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 16, 512]), st.sampled_from([0.0, 1.0, 30.0]))
def test_products_of_rounded_vectors_err_by_no_more_than_equation_1(
    seed: int, dim: int, outlier: float
) -> None:
    rng = np.random.default_rng(seed)
    # the second group is not whole
    spread = rng.standard_normal((100, dim)) + outlier * (np.arange(dim) == 0)
    true = quantize(spread / np.linalg.norm(spread, axis=1, keepdims=True))
    center = rng.normal(scale=0.1, size=dim).astype(np.float32)
    wanted = unit_vectors(rng, 8, dim)
    vectors, queries = (
        rounded(true, center, 64, "int8"),
        rounded(wanted, np.zeros(dim, np.float32), 1, "int8"),
    )
    scales, residuals, norms = np.repeat(vectors.of_groups, 64, axis=0)[:100].T.astype(np.float64)
    near = vectors.values.numpy()[:100] * scales[:, None]
    near_queries = queries.values.numpy() * queries.of_groups[:, :1].astype(np.float64)
    less = true.astype(np.float64) - center
    bound = np.outer(np.linalg.norm(near_queries, axis=1), residuals) + np.outer(
        queries.of_groups[:, 1], norms
    )
    assert (np.abs(near_queries @ near.T - wanted.astype(np.float64) @ less.T) <= bound).all()
    assert vectors.values[100:].count_nonzero() == 0


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 16, 512]))
def test_products_in_single_precision_err_by_no_more_than_their_bound(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    exact = [torch.from_numpy(unit_vectors(rng, count, dim)).float() for count in (8, 64)]
    error = (exact[0] @ exact[1].T).double() - exact[0].double() @ exact[1].double().T
    assert error.abs().max() <= product_error(dim)
