"""KID, and FID above its floor: that of real pictures at the same number of pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config
from rdm.evaluation.metrics.fid import frechet_distance, kernel_distance
from rdm.evaluation.metrics.intervals import Interval, mean_interval

_LEAST_BLOCK, _MOST_BLOCK = 100, 1000
_NUM_BLOCKS = 10
LEAST = 2  # pictures of each set


class Fidelity(Config):
    """Distances of N pictures to N reference pictures.

    FID of few pictures is mostly bias, which other real pictures have too: the excess over theirs
    is left.
    """

    num_pictures: int = Field(description="N, of each set")
    kid: float = Field(description="unbiased: the same at every N")
    kid_low: float | None = Field(
        description="95% interval over disjoint blocks; None: too few pictures for two"
    )
    kid_high: float | None
    kid_block: int | None = Field(description="pictures of a block")
    excess_fid: float = Field(description="fid - floor_fid")
    fid: float
    floor_fid: float = Field(description="FID of N other real pictures to the same reference")


def fidelity(
    pictures: NDArray[np.float64],
    real: NDArray[np.float64],
    reference: NDArray[np.float64],
    seed: int = 0,
) -> Fidelity:
    """Return the distances of pictures to a reference, beside those of real pictures.

    Args:
        pictures: features of what is measured, [A, D].
        real: features of real pictures that are not in the reference, [B, D].
        reference: features of real pictures, [C, D]. Of each set, N = min(A, B, C) random rows are
            taken.
        seed: of the draws.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    count = min(len(pictures), len(real), len(reference))
    if count < LEAST:
        raise ValueError(f"distances of {count} pictures")

    # Equal sizes: the bias of FID depends on the number of pictures.
    taken = [
        np.random.default_rng(seed).permutation(part)[:count]
        for part in (pictures, real, reference)
    ]
    fid = frechet_distance(taken[0], taken[2])
    floor = frechet_distance(taken[1], taken[2])

    block = block_size(count)
    interval = None if block is None else kernel_interval(taken[0], taken[2], block)
    return Fidelity(
        num_pictures=count,
        kid=kernel_distance(taken[0], taken[2]),
        kid_low=None if interval is None else interval.low,
        kid_high=None if interval is None else interval.high,
        kid_block=block,
        excess_fid=fid - floor,
        fid=fid,
        floor_fid=floor,
    )


def block_size(count: int) -> int | None:
    """Return the pictures of a block of KID: a tenth, 100 to 1,000; None: there are no two."""
    size = min(max(count // _NUM_BLOCKS, _LEAST_BLOCK), _MOST_BLOCK)
    return size if count >= 2 * size else None


def kernel_interval(
    first: NDArray[np.float64], second: NDArray[np.float64], block: int
) -> Interval:
    """Return KID's mean and interval over disjoint blocks of both sets (Binkowski et al. 2018).

    Raises:
        ValueError: there are no two blocks.
    """
    starts = range(0, min(len(first), len(second)) - block + 1, block)
    parts = [
        kernel_distance(first[start : start + block], second[start : start + block])
        for start in starts
    ]
    return mean_interval(np.array(parts))


def halves_fidelity(
    real: NDArray[np.float64], reconstructions: NDArray[np.float64], seed: int = 0
) -> Fidelity:
    """Return the fidelity of one half's reconstructions to the other half of the pictures.

    Args:
        real: features of pictures, [N, D], four or more.
        reconstructions: features of their reconstructions, in the same order.
        seed: of the split.

    Raises:
        ValueError: there are fewer than four pictures.
    """
    order = np.random.default_rng(seed).permutation(len(real))
    one, other = order[: len(order) // 2], order[len(order) // 2 :]
    return fidelity(reconstructions[one], real[one], real[other], seed)
