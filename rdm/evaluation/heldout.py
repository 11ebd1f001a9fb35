"""Does retrieval matter? Held-out loss with true, shuffled and no neighbors, paired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.autoregressive import autoregressive_loss
from rdm.errors import CacheError
from rdm.evaluation.intervals import Interval, mean_interval, within_subject_intervals
from rdm.progress import tracking
from rdm.sampling.model import RetrievalAutoregressionModel, RetrievalDiffusionModel, RetrievalModel
from rdm.training.data.latents import LatentData, with_mean_vector

CONDITIONS = ("true", "shuffled", "none")
LossKind = Literal["eps", "v", "x0", "tokens"]
"""Squared error of what the network predicts, or nats per token."""

Draws = Iterator[Callable[[slice, Context], Tensor]]
"""For each draw, a function from rows and their context to each row's loss, float32 [B]."""


@dataclass(frozen=True)
class HeldOutResult:
    """The objective's own loss per condition, over photographs that training never saw.

    Attributes:
        losses: per photograph, [N, C] in the order of `conditions`.
        num_draws: draws per crop, the same for every condition: of noise and time, and of whose neighbors are swapped.
        conditioning_dropout: with which the model was trained.
        loss_kind: what the loss is.
        conditions: CONDITIONS, or `none` alone for a model that reads no neighbors.
    """

    losses: NDArray[np.float64]
    num_draws: int
    conditioning_dropout: float
    loss_kind: LossKind
    conditions: tuple[str, ...] = CONDITIONS

    @property
    def intervals(self) -> dict[str, Interval]:
        """Each condition's mean with its within-subject 95% interval; a plain one where there is a single condition."""
        alone = len(self.conditions) == 1
        found = [mean_interval(self.losses[:, 0])] if alone else within_subject_intervals(self.losses)
        return dict(zip(self.conditions, found, strict=True))

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired differences to the true neighbors, with 95% intervals."""
        return {
            name: mean_interval(self.losses[:, column] - self.losses[:, 0])
            for column, name in enumerate(self.conditions)
            if column
        }

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "num_photographs": len(self.losses),
            "num_draws": self.num_draws,
            "conditioning_dropout": self.conditioning_dropout,
            "loss_kind": self.loss_kind,
            "losses": {name: asdict(interval) for name, interval in self.intervals.items()},
            "differences": {name: asdict(interval) for name, interval in self.differences.items()},
        }


@torch.no_grad()
def held_out_losses(
    model: RetrievalModel, data: LatentData, *, num_draws: int = 32, batch_size: int = 64, seed: int = 0
) -> HeldOutResult:
    """Measure the loss of held-out crops under their own neighbors, another photograph's, and the null context.

    The three see the same latents, noise and times; which photographs swap neighbors is drawn anew for each draw.
    Losses are averaged per photograph, because crops of one photograph are not independent. A model that reads no
    neighbors is measured once, as it is.

    Raises:
        CacheError: nothing is held out.
    """
    values, neighbors, images = _held_out(data)
    tokens = torch.from_numpy(neighbors).float() * model.conditioning.scale
    loss_kind, draws = _draws(model, torch.from_numpy(values), num_draws, seed)
    conditions = ("none",) if model.unconditional else CONDITIONS
    totals, counts = np.zeros((len(values), len(conditions))), np.zeros(len(conditions))
    with tracking("held-out loss", num_draws, "draws") as tracker:
        for draw, losses_of in enumerate(draws):
            contexts = {
                "true": tokens,
                "shuffled": tokens[_derangement(images, seed + draw)],
                "none": torch.zeros_like(tokens),
            }
            for column, name in enumerate(conditions):
                if draw and loss_kind == "tokens" and name != "shuffled":
                    continue  # nothing is drawn: the loss would be the same
                counts[column] += 1
                for start in range(0, len(values), batch_size):
                    rows = slice(start, start + batch_size)
                    context = _context(contexts[name][rows].to(model.device), model)
                    totals[rows, column] += losses_of(rows, context).cpu().numpy()
            tracker.advance()
    owners, inverse = np.unique(images, return_inverse=True)
    per_image = np.stack([np.bincount(inverse, totals[:, column]) for column in range(len(conditions))], axis=1)
    per_image /= counts * np.bincount(inverse, minlength=len(owners))[:, None]
    return HeldOutResult(per_image, num_draws, model.conditioning.dropout, loss_kind, conditions)


def _context(tokens: Tensor, model: RetrievalModel) -> Context:
    return with_mean_vector(Context(tokens=tokens), model.conditioning)


def _draws(model: RetrievalModel, values: Tensor, num_draws: int, seed: int) -> tuple[LossKind, Draws]:
    """Return what the loss of a model is, and its draws on the cached values of held-out crops."""
    if isinstance(model, RetrievalAutoregressionModel):
        return "tokens", _token_draws(model, values.flatten(1).long(), num_draws)
    assert isinstance(model, RetrievalDiffusionModel)
    mean = values.float().chunk(2, dim=1)[0] if model.first_stage.codebook is None else values.float()
    latents = (mean - model.first_stage.shift) * model.first_stage.scale
    return model.config.prediction_type, _noise_draws(model, latents, num_draws, seed)


def _noise_draws(model: RetrievalDiffusionModel, latents: Tensor, num_draws: int, seed: int) -> Draws:
    """Yield draws of noise and time; times are stratified: draw d of D lies in the d-th of D equal parts of 1..T."""
    generator = torch.Generator().manual_seed(seed)
    steps = model.head.schedule.num_timesteps
    for draw in range(num_draws):
        noise = torch.randn(latents.shape, generator=generator)
        part = (draw + torch.rand(len(latents), generator=generator)) / num_draws
        t = (part * steps).long().clamp(max=steps - 1)

        def losses_of(rows: slice, context: Context, noise: Tensor = noise, t: Tensor = t) -> Tensor:
            x0, times, drawn = (part[rows].to(model.device) for part in (latents, t, noise))
            return model.head.loss_at(model.denoiser, x0, times, drawn, context)

        yield losses_of


def _token_draws(model: RetrievalAutoregressionModel, tokens: Tensor, num_draws: int) -> Draws:
    """Yield the loss itself: nothing in it is drawn, but another photograph lends its neighbors each time."""
    for _ in range(num_draws):
        yield lambda rows, context: autoregressive_loss(model.predictor, tokens[rows].to(model.device), context)


def _held_out(data: LatentData) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the cached values, neighbors and photographs of held-out crops, mirror images left out."""
    values, neighbors, images = [], [], []
    for index, stem in enumerate(data.cache.stems):
        if not data.shards[index].num_samples:
            continue
        shard = data.load_shard(index)
        flipped = np.array(data.flipped(stem))
        values.append(shard[data.cache.content][~flipped])
        neighbors.append(shard["neighbors"][~flipped])
        images += [image for image, mirror in zip(data.image_ids(stem), flipped, strict=True) if not mirror]
    if not images or len(set(images)) < 3:
        raise CacheError(
            "too few photographs are held out to measure on",
            where=data.cache.folder.url,
            fix="train with a larger objective.held_out_fraction",
        )
    return np.concatenate(values), np.concatenate(neighbors), np.array(images)


def _derangement(images: NDArray[Any], seed: int) -> NDArray[np.intp]:
    """Return for every crop the position of a crop of another photograph."""
    owners = np.unique(images)
    order = np.random.default_rng(seed).permutation(len(owners))
    successor = {owners[order[i]]: owners[order[(i + 1) % len(owners)]] for i in range(len(owners))}
    first = {owner: np.flatnonzero(images == owner) for owner in owners}
    return np.array([first[successor[image]][row % len(first[successor[image]])] for row, image in enumerate(images)])
