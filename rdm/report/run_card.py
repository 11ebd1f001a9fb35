"""The card of a trained model: `README.md` in its folder, made of what its run recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rdm.compute.machine import num_cores
from rdm.errors import RdmError
from rdm.generators.model_folder import INFO, ModelInfo, read_info
from rdm.generators.portable_names import portable_name
from rdm.models.networks import build_network
from rdm.models.unet import num_parameters
from rdm.report.cards import ModelCard, model_card
from rdm.report.data import Command, HeldOutLoss, Metric
from rdm.report.html.page import duration, write_text
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.data.latent_cache import LatentCache
from rdm.training.job.rank import read_run
from rdm.training.stats import read_stats

CARD = "README.md"
_LICENSE = "other"  # of weights it is that of what they were trained on, which no file says
_LIMITS = (
    "What it draws is of the kind of its training photographs and of its database: nothing else "
    "was tried.",
    "Terms of the training photographs may bind the weights. They are not written here: add them.",
)


def write_run_card(
    run: Path, held_out: HeldOutLoss | None = None, metrics: Sequence[Metric] = ()
) -> Path | None:
    """Write the card of the model that a run exported, and return its path; None where the run
    trains no generator, whose folder has no `model.json`.

    Args:
        run: the run's folder.
        held_out: its held-out losses, where they were measured.
        metrics: what else was measured.

    Raises:
        StorageError: the card cannot be written.
    """
    model = run / "model"
    if not (model / INFO).is_file():
        return None
    write_text(model / CARD, run_card(run, held_out, metrics))
    return model / CARD


def run_card(run: Path, held_out: HeldOutLoss | None, metrics: Sequence[Metric]) -> str:
    """Return the card of the model that a run exported, as Markdown."""
    config, inputs = read_run(run)
    info = read_info(run / "model")
    steps = Steps.of(run)
    with torch.device("meta"):  # to be counted, not computed with
        network = build_network(info.generator.network)

    training = {
        "Parameters": f"{num_parameters(network):,}",
        "Steps": f"{steps.count:,} of {config.batch_size:,} pictures",
        "Time": duration(steps.seconds),
        "Hardware of the last part": f"{num_cores()} cores, {config.precision}",
        **_data_facts(info, inputs),
        **{f"Dropout of {name}": f"{rate:.3g}" for name, rate in _dropout(info).items()},
    }

    return model_card(
        ModelCard(
            name=f"{config.recipe}, {steps.count:,} steps",
            license_id=_LICENSE,
            recipe=config.recipe,
            training=training,
            removal_contact="",
            description=_description(info, config),
            held_out=held_out,
            metrics=tuple(metrics),
            limits=_LIMITS,
            usage=_usage(info),
        )
    )


@dataclass(frozen=True)
class Steps:
    """How many steps a run took, and the seconds that they took by its own record."""

    count: int
    seconds: float

    @classmethod
    def of(cls, run: Path) -> Steps:
        """Return those of a run's statistics, whose lines tell the seconds of a step since the
        last line."""
        count, seconds = 0, 0.0
        for row in read_stats(run):
            # By the run's own pace: a clock would count the pauses between its starts too.
            seconds += (row.seconds_per_step or 0.0) * (row.step - count)
            count = row.step
        return cls(count, seconds)


def _description(info: ModelInfo, config: TrainConfig) -> str:
    sources = info.generator.conditions.read
    by = f"conditioned on {' and '.join(sources)}" if sources else "conditioned on nothing"
    start = getattr(config.objective, "start", None)
    went_on = f" Training went on from {start}." if start else ""
    side = info.resolution
    return (
        f"A generator of {side}x{side} pictures, {by}: {info.generator.network.kind} on "
        f"{info.generator.space.kind}.{went_on}"
    )


def _data_facts(info: ModelInfo, inputs: TrainInputs) -> Mapping[str, str]:
    """Return what the model learned from, as far as its folder and its inputs still say."""
    facts: dict[str, str] = {}
    if inputs.cache is not None:
        try:
            cache = LatentCache(inputs.cache)
        except RdmError:  # it was deleted since, or lies where this machine cannot look
            pass
        else:
            facts["Training photographs"] = portable_name(cache.config.queries.source)
            facts["Training pictures"] = f"{sum(cache.counts.values()):,}, mirror images included"

    # The model's folder says the rest, wherever it was copied to.
    if info.held_out_fraction:
        facts["Held out"] = f"{info.held_out_fraction:.3g} of the photographs"
    if info.database is not None:
        facts["Database"] = f"{info.database.source}, version {info.database.version}"
    if info.encoder is not None:
        facts["Encoder"] = f"{info.encoder}, {info.encoder_digest}"
    if info.autoencoder is not None:
        facts["First stage"] = f"{info.autoencoder}, latents {info.latents_digest}"
    if info.text_encoder_digest is not None:
        facts["Text network"] = info.text_encoder_digest
    return facts


def _dropout(info: ModelInfo) -> Mapping[str, float]:
    return info.generator.conditions.dropout


def _usage(info: ModelInfo) -> tuple[Command, ...]:
    sources = info.generator.conditions.read
    database = " --database DB" if "neighbors" in sources else ""
    asked = '--text "..."' if sources else "--unconditional"
    return (Command(f"rdm sample --model MODEL{database} {asked}", "pictures"),)
