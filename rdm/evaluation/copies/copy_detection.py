"""Does a model copy what it was trained on, or what it looks at?

Contexts are held-out photographs, and samples are compared with photographs of training and with as
many held-out ones that no context holds: where nothing is remembered, the nearest is one of
training in exactly half of the cases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr  # scipy.stats takes two seconds to load

from rdm.compute.device import DeviceName, compute_device, describe_device
from rdm.config import digest_json
from rdm.errors import SourceError, UsageError
from rdm.evaluation.copies.copy_detector import CopyFeatures, CopyNetwork, Nearest, nearest
from rdm.evaluation.copies.copy_record import (
    FORMAT,
    Copies,
    CopyConfig,
    CopyInputs,
    MeanWithInterval,
    NearestInTraining,
    PlantedFound,
)
from rdm.evaluation.copies.planted_copies import PLANTED, mirrored, planted
from rdm.evaluation.metrics.intervals import Share, mean_interval, wilson_interval
from rdm.evaluation.recognition.judges import LITE2
from rdm.evaluation.recognition.labelled import PictureSet
from rdm.evaluation.recognition.planned_samples import (
    PlannedDraw,
    SamplePlan,
    embed,
    model_encoder,
    nearest_plan,
)
from rdm.evaluation.recognition.recognition import reconstruct
from rdm.evaluation.recognition.sample_grid import GridRow, draw_grid
from rdm.evaluation.recognition.stored_features import StoredArrays
from rdm.generators.model_folder import Model, open_model
from rdm.storage import Folder
from rdm.storage.locks import lock_file

RESULT = "copies.json"
GRID = "nearest.png"
_LOCK = ".copies.lock"
_SHOWN = 12
_LEAST = 20
_RECONSTRUCTED = "reconstruction by the first stage"


def evaluate_copies(
    inputs: CopyInputs, config: CopyConfig, out: Path, device: DeviceName = "auto"
) -> Copies:
    """Measure and write `copies.json` and `nearest.png`; finished parts are not repeated.

    Args:
        inputs: model and photographs.
        config: how much is drawn and compared.
        out: folder of the results and of finished parts.
        device: what networks compute on.

    Raises:
        UsageError: the model reads no neighbors, or asks for others than two.
        SourceError: photographs are broken, too few, or on both sides.
        EncoderMismatchError: the encoder is not the model's.
        ConcurrentWriterError: another process is measuring into the folder.
    """
    used = compute_device(device)
    model = open_model(inputs.model, used)
    if not model.reads_neighbors:
        raise UsageError(
            "the model reads no neighbors, so nothing says what a sample is to look like",
            where=inputs.model,
            fix="give a model of a recipe with neighbors",
        )
    if config.settings.k < 2:
        raise UsageError("a sample is drawn without its first neighbor too", fix="--set k=2")
    folder = Folder(out)
    folder.make()

    # Finished parts lie in the folder, so two processes would write over each other.
    with lock_file(out / _LOCK, "is measuring into this folder"):
        sides = _sides(inputs, config)
        result = _measure(inputs, config, model, sides, folder, used)
        folder.write_json(RESULT, result.model_dump(mode="json"))
    return result


@dataclass(frozen=True)
class _Sides:
    """Photographs of training and held-out ones, and rows of each that take part."""

    training: PictureSet
    held_out: PictureSet
    trained: NDArray[np.int64]
    compared: NDArray[np.int64]
    contexts: NDArray[np.int64]


def _sides(inputs: CopyInputs, config: CopyConfig) -> _Sides:
    """Choose the photographs: half of the held-out ones are contexts, the others are compared."""
    training, held_out = PictureSet(inputs.trained_on), PictureSet(inputs.held_out)
    if shared := set(training.image_ids) & set(held_out.image_ids):
        raise SourceError(
            f"{len(shared)} photographs are on both sides, such as {min(shared)!r}",
            where=held_out.spec,
            fix="give --held-out photographs that no training has seen",
        )
    count = min(len(training), len(held_out) // 2, config.num_compared)
    if count < _LEAST:
        raise SourceError(
            f"{count} photographs of each side are too few to compare with, of {_LEAST} at least",
            where=held_out.spec if len(training) >= _LEAST else training.spec,
            fix=f"give {2 * _LEAST} held-out photographs or more, and {_LEAST} of training",
        )

    # Random halves, so that both sides and the contexts are of one distribution.
    order = np.random.default_rng([config.seed, 3]).permutation(len(held_out))
    trained = np.random.default_rng([config.seed, 4]).permutation(len(training))[:count]
    return _Sides(
        training, held_out, np.sort(trained), np.sort(order[:count]), np.sort(order[count:])
    )


def _measure(
    inputs: CopyInputs,
    config: CopyConfig,
    model: Model,
    sides: _Sides,
    folder: Folder,
    device: torch.device,
) -> Copies:
    arrays, side = StoredArrays(folder), model.info.resolution or 0
    plan, samples, without_first = _drawn(inputs, config, model, sides, arrays, device)
    assert plan.queries is not None

    # Pictures, at the size that the model draws.
    real_training = sides.training.squares(sides.trained, side)
    real_compared = sides.held_out.squares(sides.compared, side)
    queries = sides.held_out.squares(plan.queries, side)
    first = sides.held_out.squares(plan.contexts[:, 0], side)

    # Each set is seen once, and what may be a mirror image is seen mirrored too.
    eyes = _Eyes(arrays, device)
    of_training, of_compared = eyes.see(real_training), eyes.see(real_compared)
    seen = {
        name: (eyes.see(pictures), eyes.see(mirrored(pictures)))
        for name, pictures in (("samples", samples), ("queries", queries))
    }
    to_training = {name: nearest(*views, of_training) for name, views in seen.items()}
    to_held_out = {name: nearest(*views, of_compared) for name, views in seen.items()}

    # The detector: thresholds of photographs that are no copies, and what it finds with them.
    thresholds = _thresholds(to_training["queries"], config.false_positives)
    copied = {
        "training": _flagged(to_training["samples"], thresholds),
        "held-out": _flagged(to_held_out["samples"], thresholds),
        "queries": _flagged(to_training["queries"], thresholds),
    }
    _write_grid(samples, to_training["samples"], real_training, folder)
    found = _planted_found(
        model, real_training[: config.num_planted], of_training, eyes, thresholds
    )

    # What the first neighbor does to a sample, by pooled features.
    of_first, (of_samples, _), (of_queries, _) = eyes.see(first), seen["samples"], seen["queries"]
    of_others = eyes.see(without_first)
    own = _cosines(of_samples, of_first)
    return Copies(
        key=digest_json([FORMAT, config.model_dump(mode="json"), model.digest, side]),
        model=str(inputs.model),
        model_digest=model.digest,
        trained_on=sides.training.spec,
        held_out=sides.held_out.spec,
        num_samples=len(samples),
        num_compared=len(sides.trained),
        settings=model.acting(config.settings),
        features=f"{LITE2}: pooled, and 17 x 17 places",
        thresholds=thresholds,
        planted=found,
        copies_of_training=_share(copied["training"]),
        copies_of_held_out=_share(copied["held-out"]),
        photographs_flagged=_share(copied["queries"]),
        nearest_in_training=_nearest_in_training(of_samples, of_training, of_compared),
        photographs_nearest_in_training=_nearest_in_training(of_queries, of_training, of_compared),
        nearer_than_truth=_share(own > _cosines(of_queries, of_first)),
        pull_of_first_neighbor=_mean(own - _cosines(of_others, of_first)),
        device=describe_device(device),
    )


def _drawn(
    inputs: CopyInputs,
    config: CopyConfig,
    model: Model,
    sides: _Sides,
    arrays: StoredArrays,
    device: torch.device,
) -> tuple[SamplePlan, NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the plan, its samples, and those of the same seeds without their first neighbors."""
    encoder = model_encoder(model, inputs.encoder, str(device))
    embeddings = embed(arrays, encoder, sides.held_out, sides.contexts)

    # Contexts are the nearest others of each query, all of them held out.
    within = nearest_plan(embeddings, config.num_samples, config.settings.k)
    assert within.queries is not None
    rows = sides.contexts
    plan = SamplePlan(rows[within.contexts], None, rows[within.queries])

    def draw(chosen: SamplePlan, name: str) -> NDArray[np.uint8]:
        places = np.searchsorted(rows, chosen.rows)
        settings = config.settings.model_copy(update={"k": chosen.contexts.shape[1]})
        digest = sides.held_out.digest
        found = PlannedDraw(model, chosen, embeddings[places], settings, config.seed, digest)
        return found.samples(arrays, name)

    # The same without the nearest: its difference is the pull of one neighbor.
    without_first = replace(plan, contexts=plan.contexts[:, 1:])
    return plan, draw(plan, "samples"), draw(without_first, "without-first")


@dataclass(frozen=True)
class _Eyes:
    """Features of sets of pictures, computed once."""

    arrays: StoredArrays
    device: torch.device

    def see(self, pictures: NDArray[np.uint8]) -> CopyFeatures:
        """Return the detector's features of pictures uint8 [N, H, W, 3]."""
        pixels = np.ascontiguousarray(pictures)
        key = digest_json([LITE2, hashlib.sha256(pixels.tobytes()).hexdigest()])
        # The network is opened inside, so that a set that stands never loads it.
        compute = cache(lambda: CopyNetwork(self.device)(pixels))
        return CopyFeatures(
            *(
                self.arrays.once(f"{part}-{key}", key, lambda part=part: getattr(compute(), part))
                for part in ("pooled", "grids", "luma")
            )
        )


def _thresholds(of_photographs: Nearest, allowed: float) -> dict[str, float]:
    """Return the thresholds that each flag half of the allowed share of photographs."""
    level = 1 - allowed / 2
    return {
        "matched places": float(np.quantile(of_photographs.places, level)),
        "brightness": float(np.quantile(of_photographs.luma, level)),
    }


def _flagged(found: Nearest, thresholds: dict[str, float]) -> NDArray[np.bool_]:
    """Return which pictures match one of the candidates."""
    places, luma = thresholds["matched places"], thresholds["brightness"]
    return (found.places > places) | (found.luma > luma)


def _planted_found(
    model: Model,
    originals: NDArray[np.uint8],
    candidates: CopyFeatures,
    eyes: _Eyes,
    thresholds: dict[str, float],
) -> tuple[PlantedFound, ...]:
    """Return the power: how many planted copies of training photographs are found, by kind."""
    # Copies that are known to be copies: what the detector finds of them is its power.
    kinds = {name: planted(name, originals) for name in PLANTED}
    if model.first_stage is not None:
        kinds[_RECONSTRUCTED] = reconstruct(model.first_stage, originals)

    return tuple(
        PlantedFound(
            kind=kind,
            found=_share(
                _flagged(
                    nearest(eyes.see(copies), eyes.see(mirrored(copies)), candidates), thresholds
                )
            ),
        )
        for kind, copies in kinds.items()
    )


def _nearest_in_training(
    pictures: CopyFeatures, training: CopyFeatures, held_out: CopyFeatures
) -> NearestInTraining:
    """Return how often the nearest of all photographs, by pooled features, is one of training."""
    best = [(pictures.pooled @ side.pooled.T).max(1) for side in (training, held_out)]
    wins, trials = int((best[0] > best[1]).sum()), len(best[0])
    return NearestInTraining(share=wilson_interval(wins, trials), p_value=even_odds(wins, trials))


def even_odds(wins: int, trials: int) -> float:
    """Return the two-sided p-value of the exact binomial test against 1/2."""
    return min(1.0, 2 * float(bdtr(min(wins, trials - wins), trials, 0.5)))


def _cosines(first: CopyFeatures, second: CopyFeatures) -> NDArray[np.float64]:
    return (first.pooled * second.pooled).sum(1).astype(np.float64)


def _share(flags: NDArray[np.bool_]) -> Share:
    return wilson_interval(int(flags.sum()), len(flags))


def _mean(values: NDArray[np.float64]) -> MeanWithInterval:
    found = mean_interval(values)
    return MeanWithInterval(mean=found.mean, low=found.low, high=found.high)


def _write_grid(
    samples: NDArray[np.uint8], found: Nearest, photographs: NDArray[np.uint8], folder: Folder
) -> None:
    """Write the samples that match training best, each beside its nearest photographs."""
    order = np.argsort(-found.places, kind="stable")[:_SHOWN]
    rows = [
        GridRow(
            f"{found.places[row]:.2f} places, {found.luma[row]:.2f} luma",
            samples[row],
            photographs[[found.copy_row[row], found.pooled_row[row]]],
        )
        for row in order
    ]
    draw_grid(rows, folder, GRID)
