"""Does retrieval matter? Held-out diffusion loss with true, shuffled and no neighbors, paired."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.context import Context
from rdm.diffusion.gaussian import PredictionType
from rdm.errors import CacheError
from rdm.evaluation.intervals import Interval, mean_interval, within_subject_intervals
from rdm.progress import tracking
from rdm.sampling.model import RetrievalDiffusionModel
from rdm.training.latents import LatentData

CONDITIONS = ("true", "shuffled", "none")


@dataclass(frozen=True)
class HeldOutResult:
    """The objective's own loss per condition, over photographs that training never saw.

    Attributes:
        losses: per photograph, [N, 3] in the order of CONDITIONS.
        num_draws: (noise, time) pairs per crop, the same for every condition.
        conditioning_dropout: with which the model was trained.
        prediction_type: whose squared error the loss is.
    """

    losses: NDArray[np.float64]
    num_draws: int
    conditioning_dropout: float
    prediction_type: PredictionType

    @property
    def intervals(self) -> dict[str, Interval]:
        """Each condition's mean with its within-subject 95% interval."""
        return dict(zip(CONDITIONS, within_subject_intervals(self.losses), strict=True))

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired differences to the true neighbors, with 95% intervals."""
        return {
            name: mean_interval(self.losses[:, column] - self.losses[:, 0])
            for column, name in enumerate(CONDITIONS)
            if column
        }

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "num_photographs": len(self.losses),
            "num_draws": self.num_draws,
            "conditioning_dropout": self.conditioning_dropout,
            "prediction_type": self.prediction_type,
            "losses": {name: asdict(interval) for name, interval in self.intervals.items()},
            "differences": {name: asdict(interval) for name, interval in self.differences.items()},
        }


@torch.no_grad()
def held_out_losses(
    model: RetrievalDiffusionModel, data: LatentData, *, num_draws: int = 32, batch_size: int = 64, seed: int = 0
) -> HeldOutResult:
    """Measure the loss of held-out crops under their own neighbors, another photograph's, and the null context.

    The three see the same latents, noise and times. Times are stratified: draw d of D lies in the d-th of D equal
    parts of 1..T; which photographs swap neighbors is drawn anew for each. Losses are averaged per photograph, because
    crops of one photograph are not independent.

    Raises:
        CacheError: nothing is held out.
    """
    latents, neighbors, images = _held_out(model, data)
    generator = torch.Generator().manual_seed(seed)
    steps = model.head.schedule.num_timesteps
    totals = np.zeros((len(latents), len(CONDITIONS)))
    with tracking("held-out loss", num_draws, "draws") as tracker:
        for draw in range(num_draws):
            noise = torch.randn(latents.shape, generator=generator)
            part = (draw + torch.rand(len(latents), generator=generator)) / num_draws
            t = (part * steps).long().clamp(max=steps - 1)
            shuffled = neighbors[_derangement(images, seed + draw)]
            for column, context in enumerate((neighbors, shuffled, torch.zeros_like(neighbors))):
                for start in range(0, len(latents), batch_size):
                    rows = slice(start, start + batch_size)
                    tokens = Context(tokens=context[rows])
                    losses = model.head.loss_at(model.denoiser, latents[rows], t[rows], noise[rows], tokens)
                    totals[rows, column] += losses.numpy()
            tracker.advance()
    owners, inverse = np.unique(images, return_inverse=True)
    per_image = np.stack([np.bincount(inverse, totals[:, column]) for column in range(len(CONDITIONS))], axis=1)
    per_image /= num_draws * np.bincount(inverse, minlength=len(owners))[:, None]
    return HeldOutResult(per_image, num_draws, model.config.conditioning.dropout, model.config.prediction_type)


def _held_out(model: RetrievalDiffusionModel, data: LatentData) -> tuple[torch.Tensor, torch.Tensor, NDArray[Any]]:
    latents, neighbors, images = [], [], []
    for index, stem in enumerate(data.cache.stems):
        if not data.shards[index].num_samples:
            continue
        shard = data.load_shard(index)
        flipped = np.array(data.flipped(stem))
        latents.append(shard[data.cache.content][~flipped])
        neighbors.append(shard["neighbors"][~flipped])
        images += [image for image, mirror in zip(data.image_ids(stem), flipped, strict=True) if not mirror]
    if not images or len(set(images)) < 3:
        raise CacheError(
            "too few photographs are held out to measure on",
            where=data.cache.folder.url,
            fix="train with a larger objective.held_out_fraction",
        )
    raw = torch.from_numpy(np.concatenate(latents)).float()
    mean = raw.chunk(2, dim=1)[0] if data.cache.content == "moments" else raw
    tokens = torch.from_numpy(np.concatenate(neighbors)).float() * model.config.conditioning.scale
    return (mean - model.first_stage.shift) * model.first_stage.scale, tokens, np.array(images)


def _derangement(images: NDArray[Any], seed: int) -> NDArray[np.intp]:
    """Return for every crop the position of a crop of another photograph."""
    owners = np.unique(images)
    order = np.random.default_rng(seed).permutation(len(owners))
    successor = {owners[order[i]]: owners[order[(i + 1) % len(owners)]] for i in range(len(owners))}
    first = {owner: np.flatnonzero(images == owner) for owner in owners}
    return np.array([first[successor[image]][row % len(first[successor[image]])] for row, image in enumerate(images)])
