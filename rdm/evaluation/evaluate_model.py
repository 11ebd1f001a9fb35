"""Measure a model: held-out losses, FID and KID of unconditional samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from rdm.compute.device import DeviceName, compute_device, describe_device
from rdm.config import Config, Record, digest_json
from rdm.database import RetrievalDatabase
from rdm.evaluation.heldout import HeldOutLosses, held_out_losses, held_out_rows
from rdm.evaluation.metrics.fid import InceptionFeatures, Metric, compare
from rdm.generators.model_folder import INFO, Model, open_model
from rdm.generators.sample_settings import SampleSettings
from rdm.progress import tracking
from rdm.sampling import check_asked, proposed_queries, sample
from rdm.sources import QuerySet, QuerySetConfig
from rdm.storage import Folder

RESULT = "evaluation.json"
FORMAT = 4  # of that file; one of another format is measured again


class EvaluationConfig(Config):
    """What is measured, and on how much."""

    num_draws: int = Field(default=32, ge=2, description="(noise, time) pairs per held-out crop")
    num_samples: int = Field(default=256, ge=2, description="unconditional samples for FID and KID")
    num_reference: int = Field(default=1000, ge=2, description="reference pictures at most")
    top_m: float = Field(
        default=1.0, gt=0, le=1, description="share of the likeliest patches that p_D keeps"
    )
    settings: SampleSettings = SampleSettings(batch_size=32)
    seed: int = 0


class Evaluation(Record):
    """`evaluation.json`: what was measured of a model."""

    key: str
    """Changes whenever anything does that the results depend on."""
    config: EvaluationConfig
    device: str
    """What networks computed on, in words."""
    held_out: HeldOutLosses | None
    """None where no cache was given."""
    metrics: list[Metric]


@dataclass(frozen=True)
class EvaluationInputs:
    """What is measured with what.

    Attributes:
        model: a model's folder.
        database: where neighbors are looked up; None for a model that was trained without.
        cache: with held-out photographs, for the losses; None: no losses.
        reference: the query set that the samples should look like.
    """

    model: str | Path
    database: str | None
    cache: str | None
    reference: QuerySetConfig


def evaluate_model(
    inputs: EvaluationInputs, config: EvaluationConfig, out: Path, device: DeviceName = "auto"
) -> Evaluation:
    """Measure a model and write `evaluation.json`; an equal finished measurement is read instead.

    Args:
        inputs: what is measured with what.
        config: how much.
        out: folder for the result.
        device: what networks compute on.

    Raises:
        ModelError: the model cannot be opened.
        CacheError: the cache is of another first stage or content than the model's.
        EncoderMismatchError: model and database do not belong together.
        DeviceError: the device is `cuda`, and there is no GPU.
    """
    used = compute_device(device)
    model, database = open_model(inputs.model, used), None
    if inputs.database is not None:
        database = RetrievalDatabase.open(inputs.database, device=device)
    check_asked(model.info, database, {"unconditional"})
    folder = Folder(out)
    key = digest_json(
        [
            FORMAT,
            config.model_dump(mode="json"),
            inputs.reference.model_dump(mode="json"),
            inputs.cache,
            database and database.version.number,
            (model.directory / INFO).read_text(encoding="utf-8"),
        ]
    )
    if folder.exists(RESULT) and (found := folder.read_json(RESULT)).get("key") == key:
        return Evaluation.model_validate(found)

    # Measure.
    held_out = None
    if inputs.cache is not None:
        rows = held_out_rows(model, inputs.cache, inputs.database)
        losses = held_out_losses(model, rows, num_draws=config.num_draws, seed=config.seed)
        held_out = losses.summary()
    result = Evaluation(
        key=key,
        config=config,
        device=describe_device(used),
        held_out=held_out,
        metrics=_feature_metrics(model, database, inputs.reference, config),
    )
    folder.write_json(RESULT, result.to_json())
    return result


def _feature_metrics(
    model: Model,
    database: RetrievalDatabase | None,
    reference: QuerySetConfig,
    config: EvaluationConfig,
) -> list[Metric]:
    # Far from the seeds that people draw with: no picture that was shown is measured.
    seeds = [1_000_000 + config.seed + number for number in range(config.num_samples)]
    queries = proposed_queries(model, database, seeds, top_m=config.top_m, k=config.settings.k)
    resolution = model.info.resolution or 0
    inception = InceptionFeatures(model.device)
    # A batch of pictures at a time: of the others only their features are kept.
    features = inception(
        item.pixels for item in sample(model, database, queries, seeds, config.settings)
    )
    with tracking("FID features", 1, "sets") as tracker:
        truth = inception(reference_pictures(reference, resolution, config.num_reference))
        tracker.advance()
    return compare(features, truth, f"{reference.source}, crops at {resolution} px")


def reference_pictures(
    reference: QuerySetConfig, resolution: int, limit: int
) -> list[NDArray[np.uint8]]:
    """Return the first crop of at most `limit` photographs, resized as the latent cache does."""
    pictures: list[NDArray[np.uint8]] = []
    queries = QuerySet(reference)
    for stem in queries.stems:
        for crop in queries.crops(stem, []):
            # One crop of each: crops of a photograph share pixels, and would count as several.
            if crop.key.endswith("/0") and len(pictures) < limit:
                pictures.append(
                    np.asarray(
                        crop.image.resize((resolution, resolution), Image.Resampling.LANCZOS)
                    )
                )
    return pictures
