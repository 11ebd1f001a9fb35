"""The proposal distribution p_D: how often each patch is a training sample's neighbor.

p_D(y) = |{x in X : y in xi_k(x, D)}| / (k |X|)   (Blattmann et al. 2022, section 3.2). Counts are
exact integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdm.errors import DatabaseError


@dataclass(frozen=True)
class Proposal:
    """Counts over patches: `counts[i]` of the k |X| neighbor slots hold patch `ids[i]`; most
    frequent first."""

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def from_neighbors(cls, neighbor_ids: NDArray[np.int64]) -> Proposal:
        """Count neighbor ids [N, k]; ties are ordered by id.

        Raises:
            DatabaseError: there are no neighbors to count.
        """
        if neighbor_ids.size == 0:
            raise DatabaseError(
                "the proposal distribution has no neighbors to count", fix="rdm neighbors build ..."
            )
        ids, counts = np.unique(neighbor_ids, return_counts=True)
        # By id where counts are equal, so that the cut of `truncated` does not depend on the sort.
        order = np.lexsort((ids, -counts))
        return cls(ids[order], counts[order])

    @property
    def total(self) -> int:
        """k |X|: what the counts sum to."""
        return int(self.counts.sum())

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """p_D of each id; sums to 1."""
        return self.counts / self.total

    def truncated(self, top_m: float) -> Proposal:
        """Keep the likeliest fraction `top_m` in (0, 1] of the patches, at least one.

        Raises:
            ValueError: top_m is out of range.
        """
        if not 0 < top_m <= 1:
            raise ValueError(f"top_m must be in (0, 1], not {top_m}")
        kept = max(1, round(top_m * len(self.ids)))
        return Proposal(self.ids[:kept], self.counts[:kept])

    def without(self, deleted: NDArray[np.int64]) -> Proposal:
        """Drop deleted patches."""
        living = ~np.isin(self.ids, deleted)
        return Proposal(self.ids[living], self.counts[living])

    def draw(self, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return one patch id per seed, drawn by the counts; a function of the seed alone."""
        ends = np.cumsum(self.counts)
        # A stream of its own: the query must not be tied to the noise, which has the same seed.
        slots = [int(np.random.default_rng([int(seed), 0x9D]).integers(ends[-1])) for seed in seeds]
        return self.ids[np.searchsorted(ends, slots, side="right")]

    @property
    def effective_support(self) -> float:
        """exp of the entropy: how many patches the distribution is spread over."""
        p = self.probabilities
        return float(np.exp(-(p * np.log(p)).sum()))
