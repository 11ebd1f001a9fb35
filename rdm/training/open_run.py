"""From a configuration and its inputs to data and objective, for every kind of recipe."""

from __future__ import annotations

from pathlib import Path

from rdm.sources import open_source
from rdm.training.config import InputName, TrainConfig, TrainInputs
from rdm.training.data.training_data import TrainingData
from rdm.training.objectives.autoencoder_config import AutoencoderObjectiveConfig
from rdm.training.objectives.contrastive import ContrastiveConfig
from rdm.training.objectives.generative import GenerativeConfig
from rdm.training.objectives.objective import Objective


def open_run(config: TrainConfig, inputs: TrainInputs) -> tuple[TrainingData, Objective]:
    """Return the training data and the objective of a run; preparations are made once and kept.

    Raises:
        UsageError: an input that the recipe needs was not given.
        CacheError: the inputs do not belong together.
    """
    objective = config.objective
    if isinstance(objective, ContrastiveConfig):
        from rdm.training.objectives.contrastive import open_training as open_contrastive

        return open_contrastive(
            inputs.require("source", config.recipe), Path(inputs.out) / "features", objective
        )
    if isinstance(objective, AutoencoderObjectiveConfig):
        from rdm.training.objectives.autoencoder_objective import open_training as open_autoencoder

        return open_autoencoder(inputs.require("source", config.recipe), objective)
    from rdm.training.objectives.generative import open_training

    given = {name: inputs.require(name, config.recipe) for name in needed_inputs(config)}
    return open_training(given["cache"], given.get("database"), objective)


def needed_inputs(config: TrainConfig) -> tuple[InputName, ...]:
    """Return the inputs that a recipe needs: photographs, or a cache and perhaps a database."""
    if not isinstance(config.objective, GenerativeConfig):
        return ("source",)
    return ("cache",) if config.objective.conditions.neighbors is None else ("cache", "database")


def reads_photographs(config: TrainConfig) -> bool:
    """Return whether a recipe trains on photographs themselves, and not on rows of a cache."""
    return "source" in needed_inputs(config)


def is_on_pixels(config: TrainConfig) -> bool:
    """Return whether a recipe trains on pictures, so that its cache needs no autoencoder."""
    objective = config.objective
    return isinstance(objective, GenerativeConfig) and objective.space.kind == "pixels"


def check_inputs(config: TrainConfig, inputs: TrainInputs) -> None:
    """Refuse inputs that are missing or do not fit, as far as nothing has to be prepared for it.

    Raises:
        UsageError: an input that the recipe needs was not given.
        RdmError: an input is not there, or the inputs do not belong together.
    """
    if not reads_photographs(config):
        open_run(config, inputs)
        return
    for spec in inputs.require("source", config.recipe).split(","):
        open_source(spec.strip())
