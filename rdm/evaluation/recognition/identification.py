"""M-way identification: does a picture point to its own context among M?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config
from rdm.evaluation.metrics.intervals import Share, mean_interval, wilson_interval

LEAST_CONTEXTS = 3
# The least p-value is then 1/2001, and its error at 0.05 about 0.005.
_PERMUTATIONS = 2000


class Identification(Config):
    """How well pictures point to their own contexts."""

    num_contexts: int = Field(description="M")
    top1: Share = Field(description="own context is the nearest; chance is 1 / M")
    auc: float = Field(description="own context is nearer than another one; chance is 0.5")
    auc_low: float = Field(description="95% interval over pictures")
    auc_high: float
    p_value: float = Field(description="one-sided, of permutations of contexts over pictures")
    z_score: float = Field(description="mean own similarity, in deviations of the permuted one")


def identify(
    samples: NDArray[np.floating], contexts: NDArray[np.floating], seed: int = 0
) -> tuple[Identification, NDArray[np.float64]]:
    """Return the identification of M pictures among M contexts, and each picture's own AUC [M].

    Both sets are centered first, so that what all pictures (or all contexts) share points nowhere.

    Args:
        samples: features of the pictures, [M, D].
        contexts: features of their contexts, such as means over neighbors, [M, D], in the same
            order.
        seed: of the permutations.

    Raises:
        ValueError: the shapes differ, or M is less than 3.
    """
    if samples.shape != contexts.shape or len(samples) < LEAST_CONTEXTS:
        raise ValueError(f"identification of {samples.shape} among {contexts.shape}")
    count = len(samples)
    similarities = _centered_units(samples) @ _centered_units(contexts).T
    own = similarities.diagonal().copy()

    # A tie with another context counts half.
    higher = (similarities < own[:, None]).sum(1)
    equal = (similarities == own[:, None]).sum(1) - 1
    auc = (higher + 0.5 * equal) / (count - 1)
    interval = mean_interval(auc)

    # Contexts change places among pictures: what is left is chance.
    rng, rows = np.random.default_rng(seed), np.arange(count)
    permuted = np.array(
        [similarities[rows, rng.permutation(count)].mean() for _ in range(_PERMUTATIONS)]
    )
    found = Identification(
        num_contexts=count,
        top1=wilson_interval(int((higher == count - 1).sum()), count),
        auc=interval.mean,
        auc_low=max(0.0, interval.low),
        auc_high=min(1.0, interval.high),
        # With the observed order as one of the permutations, so that p is never 0.
        p_value=float((1 + (permuted >= own.mean()).sum()) / (1 + _PERMUTATIONS)),
        z_score=float((own.mean() - permuted.mean()) / max(permuted.std(), 1e-12)),
    )
    return found, auc


def _centered_units(features: NDArray[np.floating]) -> NDArray[np.float64]:
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
