"""Retrieval-augmented diffusion: a small network, and a database of photographs that it looks
things up in.

What notebooks and the documentation use is imported from here: `from rdm import open_model`. A name
is loaded when it is asked for, so `import rdm` is quick.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdm.compute import ComputeConfig, compute_pool
    from rdm.database import DatabaseBuilder, NeighborTable, RetrievalDatabase, build_neighbors
    from rdm.database.building.jobs import build_config, run_build
    from rdm.diffusion.bound import bits_per_dim, variational_bound
    from rdm.encoders import load_encoder
    from rdm.errors import RdmError
    from rdm.evaluation.influence import Retrieved, influences, readout
    from rdm.recipes import RECIPES, recipe_config
    from rdm.report.html.gallery import contact_sheet
    from rdm.report.html.plots import loss_curve
    from rdm.sampling import (
        Model,
        Request,
        SampleSettings,
        image_queries,
        open_model,
        sample,
        text_queries,
        unconditional_queries,
    )
    from rdm.sampling.drawing.draw import draw
    from rdm.sampling.pipelines.retrieval_pipeline import RetrievalPipeline
    from rdm.sampling.retrieval.look_up import look_up
    from rdm.training.config import TrainConfig, TrainInputs
    from rdm.training.data.latent_cache import LatentCache, build_cache
    from rdm.training.job.launch import run_training
    from rdm.training.presets import cache_config, neighbor_config
    from rdm.training.stats import read_stats

try:
    __version__ = version("retrieval-diffusion")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "ComputeConfig": "rdm.compute",
    "DatabaseBuilder": "rdm.database",
    "LatentCache": "rdm.training.data.latent_cache",
    "Model": "rdm.sampling",
    "NeighborTable": "rdm.database",
    "RECIPES": "rdm.recipes",
    "RdmError": "rdm.errors",
    "Request": "rdm.sampling",
    "RetrievalDatabase": "rdm.database",
    "RetrievalPipeline": "rdm.sampling.pipelines.retrieval_pipeline",
    "Retrieved": "rdm.evaluation.influence",
    "SampleSettings": "rdm.sampling",
    "TrainConfig": "rdm.training.config",
    "TrainInputs": "rdm.training.config",
    "bits_per_dim": "rdm.diffusion.bound",
    "build_cache": "rdm.training.data.latent_cache",
    "build_config": "rdm.database.building.jobs",
    "build_neighbors": "rdm.database",
    "cache_config": "rdm.training.presets",
    "compute_pool": "rdm.compute",
    "contact_sheet": "rdm.report.html.gallery",
    "draw": "rdm.sampling.drawing.draw",
    "image_queries": "rdm.sampling",
    "influences": "rdm.evaluation.influence",
    "load_encoder": "rdm.encoders",
    "look_up": "rdm.sampling.retrieval.look_up",
    "loss_curve": "rdm.report.html.plots",
    "neighbor_config": "rdm.training.presets",
    "open_model": "rdm.sampling",
    "read_stats": "rdm.training.stats",
    "readout": "rdm.evaluation.influence",
    "recipe_config": "rdm.recipes",
    "run_build": "rdm.database.building.jobs",
    "run_training": "rdm.training.job.launch",
    "sample": "rdm.sampling",
    "text_queries": "rdm.sampling",
    "unconditional_queries": "rdm.sampling",
    "variational_bound": "rdm.diffusion.bound",
}

__all__ = [
    "ComputeConfig",
    "DatabaseBuilder",
    "LatentCache",
    "Model",
    "NeighborTable",
    "RECIPES",
    "RdmError",
    "Request",
    "RetrievalDatabase",
    "RetrievalPipeline",
    "Retrieved",
    "SampleSettings",
    "TrainConfig",
    "TrainInputs",
    "__version__",
    "bits_per_dim",
    "build_cache",
    "build_config",
    "build_neighbors",
    "cache_config",
    "compute_pool",
    "contact_sheet",
    "draw",
    "image_queries",
    "influences",
    "load_encoder",
    "look_up",
    "loss_curve",
    "neighbor_config",
    "open_model",
    "read_stats",
    "readout",
    "recipe_config",
    "run_build",
    "run_training",
    "sample",
    "text_queries",
    "unconditional_queries",
    "variational_bound",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
