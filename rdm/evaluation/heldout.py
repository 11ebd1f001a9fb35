"""Held-out losses: does a source matter? With it, with another photograph's, and without it.

Paired: every condition sees the same samples, noise and times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdm.config import Record
from rdm.context import Context
from rdm.errors import CacheError
from rdm.evaluation.metrics.intervals import Interval, mean_interval, within_subject_intervals
from rdm.generators.losses import LossKind
from rdm.generators.model_folder import Model
from rdm.progress import tracking
from rdm.training.data.rows import RowSettings, TrainingRows

Changed = Callable[[Context, Tensor], Context]
"""(the true context, whose place each sample takes in the shuffle [N]) -> the context of a
condition."""


class HeldOutLosses(Record):
    """Held-out losses as `evaluation.json` has them: means with 95% intervals, by condition."""

    num_photographs: int
    num_draws: int
    """Of noise and time per crop, the same for every condition."""
    conditioning_dropout: dict[str, float]
    """By source, with which the model was trained."""
    loss_kind: LossKind
    losses: dict[str, Interval]
    differences: dict[str, Interval]
    """Paired, to the true context."""


@dataclass(frozen=True)
class HeldOutResult:
    """The objective's own loss per condition, over photographs that training never saw.

    Attributes:
        losses: per photograph, [N, C] in the order of `conditions`.
        num_draws: draws per crop, the same for every condition: of noise and time, and of who is
            swapped with whom.
        conditioning_dropout: by source, with which the model was trained.
        loss_kind: what the loss is.
        conditions: `true`, `shuffled` and `none` of a model that reads one source; of several
            `shuffled SOURCE` and `no SOURCE` for each; `none` alone of a model that reads nothing.
    """

    losses: NDArray[np.float64]
    num_draws: int
    conditioning_dropout: Mapping[str, float]
    loss_kind: LossKind
    conditions: tuple[str, ...] = ("true", "shuffled", "none")

    @property
    def intervals(self) -> dict[str, Interval]:
        """Each condition's mean with its within-subject 95% interval; a plain one where there is a
        single condition."""
        alone = len(self.conditions) == 1
        found = (
            [mean_interval(self.losses[:, 0])] if alone else within_subject_intervals(self.losses)
        )
        return dict(zip(self.conditions, found, strict=True))

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired differences to the true context, with 95% intervals."""
        return {
            name: mean_interval(self.losses[:, column] - self.losses[:, 0])
            for column, name in enumerate(self.conditions)
            if column
        }

    def summary(self) -> HeldOutLosses:
        """Return means and intervals, without the single photographs."""
        return HeldOutLosses(
            num_photographs=len(self.losses),
            num_draws=self.num_draws,
            conditioning_dropout=dict(self.conditioning_dropout),
            loss_kind=self.loss_kind,
            losses=self.intervals,
            differences=self.differences,
        )


def held_out_rows(model: Model, cache: str, database: str | None) -> TrainingRows:
    """Return the rows of a cache that a model was not trained on.

    Raises:
        UsageError: the model was trained with neighbors, and there is no database.
        CacheError: the cache is of another first stage or content than the model's.
    """
    settings = RowSettings(model.config.conditions, model.info.held_out_fraction or 0.0)
    rows = TrainingRows.open(cache, database, settings, held_out=True)
    found, wanted = rows.cache.info.latents_digest, model.info.latents_digest
    contents = model.generator.space.contents
    # Latents of another first stage have the right shape, and their loss would mean nothing.
    if found != wanted or rows.cache.content not in contents:
        raise CacheError(
            f"the cache holds {rows.cache.content} of the first stage {found}, the model reads "
            f"{' or '.join(contents)} of {wanted}",
            where=rows.cache.folder.url,
            fix="give --cache the one that the model was trained on",
        )
    return rows


@torch.no_grad()
def held_out_losses(
    model: Model, rows: TrainingRows, *, num_draws: int = 32, batch_size: int = 64, seed: int = 0
) -> HeldOutResult:
    """Measure the loss of held-out crops with a source true, shuffled and left out.

    All conditions see the same samples, noise and times; which photographs are swapped is drawn
    anew for each draw. Losses are averaged per photograph, because crops of one photograph are not
    independent. A model that reads nothing is measured once, as it is.

    Args:
        model: the system.
        rows: held-out crops, with what conditions them.
        num_draws: of noise and time per crop.
        batch_size: crops computed at once.
        seed: of the draws and of the swaps.

    Raises:
        CacheError: too few photographs are held out.
    """
    batch, images = _held_out(rows)
    generator, sources = model.generator, model.sources
    true, conditions = generator.context_of(batch), _conditions(sources)
    fixed = generator.head.deterministic_loss
    count = len(images)

    # Sum each condition over draws of noise and time, which all conditions share.
    totals, counts = np.zeros((count, len(conditions))), np.zeros(len(conditions))
    with tracking("held-out loss", num_draws, "draws") as tracker:
        for draw, losses_of in enumerate(generator.draws(batch, num_draws, seed)):
            # Another derangement for each draw: a single one would measure some pairs of
            # photographs only.
            others = torch.from_numpy(_derangement(images, seed + draw))
            for column, (name, changed) in enumerate(conditions.items()):
                if draw and fixed and not name.startswith("shuffled"):
                    continue  # nothing is drawn: the loss would be the same
                counts[column] += 1
                context = changed(true, others)
                for start in range(0, count, batch_size):
                    part = slice(start, min(start + batch_size, count))
                    # The set's context stays on the CPU; a batch of it goes to the device.
                    of_part = context.rows(torch.arange(part.start, part.stop)).to(model.device)
                    totals[part, column] += losses_of(part, of_part).cpu().numpy()
            tracker.advance()

    owners, inverse = np.unique(images, return_inverse=True)
    per_image = np.stack(
        [np.bincount(inverse, totals[:, column]) for column in range(len(conditions))], axis=1
    )
    # Photographs weigh the same however many crops they have: they are the independent units.
    per_image /= counts * np.bincount(inverse, minlength=len(owners))[:, None]
    dropout = model.config.conditions.dropout
    return HeldOutResult(
        per_image, num_draws, dropout, model.config.head.loss_kind, tuple(conditions)
    )


def _conditions(sources: tuple[str, ...]) -> dict[str, Changed]:
    """Return what is measured of a model that reads these sources, by name."""
    if not sources:
        return {"none": lambda context, others: context}
    found: dict[str, Changed] = {"true": lambda context, others: context}
    alone = len(sources) == 1
    for source in sources:
        found["shuffled" if alone else f"shuffled {source}"] = _shuffled(source)
        found["none" if alone else f"no {source}"] = _without(source)
    return found


def _shuffled(source: str) -> Changed:
    return lambda context, others: context.shuffled(source, others)


def _without(source: str) -> Changed:
    return lambda context, others: context.null([source])


def _held_out(rows: TrainingRows) -> tuple[dict[str, Tensor], NDArray[Any]]:
    """Return the arrays and the photographs of held-out crops, mirror images left out."""
    parts: list[dict[str, NDArray[Any]]] = []
    images: list[str] = []
    for index, stem in enumerate(rows.cache.stems):
        if not rows.shards[index].num_samples:
            continue
        # A mirror image says nearly the same as its crop: it would cost as much and tell little.
        flipped = np.array(rows.flipped(stem))
        parts.append({name: array[~flipped] for name, array in rows.load_shard(index).items()})
        images += [
            image for image, mirror in zip(rows.image_ids(stem), flipped, strict=True) if not mirror
        ]

    # A derangement of photographs needs three for its draws to differ.
    if not images or len(set(images)) < 3:
        raise CacheError(
            "too few photographs are held out to measure on",
            where=rows.cache.folder.url,
            fix="train with a larger objective.held_out_fraction",
        )

    batch = {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]
    }
    return batch, np.array(images)


def _derangement(images: NDArray[Any], seed: int) -> NDArray[np.intp]:
    """Return for every crop the position of a crop of another photograph."""
    owners = np.unique(images)
    order = np.random.default_rng(seed).permutation(len(owners))
    # One cycle through all photographs in random order: nobody can be their own successor.
    successor = {owners[order[i]]: owners[order[(i + 1) % len(owners)]] for i in range(len(owners))}
    first = {owner: np.flatnonzero(images == owner) for owner in owners}
    return np.array(
        [
            first[successor[image]][row % len(first[successor[image]])]
            for row, image in enumerate(images)
        ]
    )
