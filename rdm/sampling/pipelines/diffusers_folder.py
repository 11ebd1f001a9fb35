"""A model's folder in diffusers' layout, and diffusers' own pipeline of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rdm.database import RetrievalDatabase
from rdm.errors import StorageError, UsageError
from rdm.generators.heads import GaussianConfig
from rdm.generators.model_folder import INFO, Model
from rdm.generators.provenance import DefaultDatabase
from rdm.models.token_predictor import TokenPredictor
from rdm.sampling.pipelines.default_database import default_database_of
from rdm.storage.files import storage_errors

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

MODEL_INDEX = "model_index.json"
UNET, VAE, SCHEDULER, PIPELINE = "unet", "vae", "scheduler", "pipeline.py"
_PIPELINE = '''"""diffusers opens the folder by this class of the package retrieval-diffusion."""

from rdm.sampling.pipelines.diffusers_pipeline import RetrievalDiffusionPipeline

__all__ = ["RetrievalDiffusionPipeline"]
'''
Prediction = Literal["epsilon", "v_prediction", "sample"]
_PREDICTIONS: dict[str, Prediction] = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def write_diffusers_folder(
    model: Model, directory: Path, default_database: RetrievalDatabase | None = None
) -> None:
    """Write a model in diffusers' layout into a new folder; `open_model` opens it too.

    diffusers itself opens the network by `subfolder="unet"`, and the whole by
    `custom_pipeline="pipeline", trust_remote_code=True`. No database is written: it is given when
    pictures are drawn, or its address is noted.

    Args:
        model: what is written.
        directory: the new folder.
        default_database: opened where none is given, as long as it is the same.

    Raises:
        UsageError: the model is no diffusion model.
        StorageError: the folder exists.
    """
    network = model.generator.network
    if isinstance(network, TokenPredictor) or not isinstance(model.config.head, GaussianConfig):
        raise UsageError(
            "diffusers has no pipeline for a model that draws token by token",
            where=model.directory,
            fix="copy the model's folder, or use `rdm export-model`",
        )
    if directory.exists():
        raise StorageError("the folder exists already", where=directory, fix="name a new folder")

    # Under another name first: a folder that is there is whole.
    temporary = directory.with_name(f".{directory.name}.tmp")
    with storage_errors(directory):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        noted = default_database and default_database_of(default_database, directory)
        _write(model, temporary, noted)
        temporary.rename(directory)


def _write(model: Model, directory: Path, default_database: DefaultDatabase | None) -> None:
    from diffusers import __version__

    # Each component as diffusers itself would save it, so that it opens them alone.
    unet: Any = model.generator.network.core
    unet.save_pretrained(str(directory / UNET), safe_serialization=True)
    scheduler_of(model).save_pretrained(str(directory / SCHEDULER))

    # The index names classes of diffusers; a model in pixels has no vae.
    info = model.info.model_copy(update={"default_database": default_database})
    index: dict[str, Any] = {
        "_class_name": "RetrievalDiffusionPipeline",
        "_diffusers_version": __version__,
        "unet": ["diffusers", type(unet).__name__],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vae": [None, None],
    }
    if model.first_stage is not None:
        vae = model.first_stage.model
        vae.save_pretrained(str(directory / VAE), safe_serialization=True)
        index["vae"] = ["diffusers", type(vae).__name__]
        info = info.model_copy(update={"autoencoder": VAE})

    # The encoder's name and the conditions, which no component of diffusers holds.
    index["rdm"] = info.model_dump(mode="json")
    (directory / INFO).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (directory / PIPELINE).write_text(_PIPELINE, encoding="utf-8")

    text = json.dumps(index, indent=1) + "\n"
    (directory / MODEL_INDEX).write_text(text, encoding="utf-8")
    card = model.directory / "README.md"
    if card.is_file():
        shutil.copyfile(card, directory / card.name)


def scheduler_of(model: Model) -> DDIMScheduler:
    """Return diffusers' DDIM scheduler with the noise levels of a model.

    `steps_offset` 1 and a last step to the first level are latent diffusion's rule, as ours is.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    head = model.config.head
    assert isinstance(head, GaussianConfig)
    return DDIMScheduler(
        num_train_timesteps=head.schedule.build().num_timesteps,
        trained_betas=head.schedule.build().betas.tolist(),
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=_PREDICTIONS[head.prediction_type],
    )
