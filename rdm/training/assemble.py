"""From a configuration and its inputs to data and objective: the one place that knows every kind."""

from __future__ import annotations

from pathlib import Path

from rdm.sources import open_source
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.data.training_data import TrainingData
from rdm.training.objectives.autoencoder import AutoencoderObjectiveConfig
from rdm.training.objectives.contrastive import ContrastiveConfig
from rdm.training.objectives.objective import Objective
from rdm.training.objectives.retrieval_autoregression import RetrievalAutoregressionConfig


def open_run(config: TrainConfig, inputs: TrainInputs) -> tuple[TrainingData, Objective]:
    """Return the training data and the objective of a run. What has to be prepared first is prepared once and kept.

    Raises:
        UsageError: an input that the recipe needs was not given.
        CacheError: the inputs do not belong together.
    """
    objective = config.objective
    if isinstance(objective, ContrastiveConfig):
        from rdm.training.objectives.contrastive import open_training as open_contrastive

        return open_contrastive(inputs.require("source", config.recipe), Path(inputs.out) / "features", objective)
    if isinstance(objective, AutoencoderObjectiveConfig):
        from rdm.training.objectives.autoencoder import open_training as open_autoencoder

        return open_autoencoder(inputs.require("source", config.recipe), objective)
    cache, database = inputs.require("cache", config.recipe), inputs.require("database", config.recipe)
    if isinstance(objective, RetrievalAutoregressionConfig):
        from rdm.training.objectives.retrieval_autoregression import open_training as open_autoregression

        return open_autoregression(cache, database, objective)
    from rdm.training.objectives.retrieval_diffusion import open_training

    return open_training(cache, database, objective)


def reads_photographs(config: TrainConfig) -> bool:
    """Return whether a recipe trains on photographs themselves, and not on latents with neighbors."""
    return isinstance(config.objective, ContrastiveConfig | AutoencoderObjectiveConfig)


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
