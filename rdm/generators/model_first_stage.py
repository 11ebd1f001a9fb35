"""The first stage of a model: copied into the model's folder, and opened from there."""

from __future__ import annotations

import shutil
from pathlib import Path

from rdm.errors import ModelError
from rdm.generators.provenance import Provenance
from rdm.models.assets import is_asset
from rdm.models.first_stage.first_stage import FirstStage, load_autoencoder
from rdm.models.first_stage.first_stage_folder import WEIGHTS_NAME
from rdm.storage.files import storage_errors

FIRST_STAGE = "first_stage"
DIFFUSERS_FIRST_STAGE = "vae"  # in the layout of its pipelines


def open_first_stage(directory: Path, info: Provenance) -> FirstStage:
    """Open the first stage of a model: an asset, or a folder inside the model's.

    Raises:
        ModelError: it is not there, cannot be opened, or is not the one that the model was trained
            with.
    """
    name = info.autoencoder or FIRST_STAGE
    if not is_asset(name):
        place = directory / (name if name == DIFFUSERS_FIRST_STAGE else FIRST_STAGE)
        if not place.is_dir():
            raise ModelError(
                "the model's folder lacks its first stage",
                where=place,
                fix="copy the model's whole folder again",
            )
        name = str(place)

    # Latents of another encoder would decode to noise, without an error.
    first_stage = load_autoencoder(name)
    if first_stage.latents_digest != info.latents_digest:
        raise ModelError(
            "the model was trained with another first stage",
            where=name,
            fix="restore that first stage, or train again",
        )
    return first_stage


def copy_first_stage(source: Path, target: Path) -> None:
    """Copy a first stage into a model's folder.

    Raises:
        ModelError: it is gone.
    """
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        try:
            for name in ("config.json", WEIGHTS_NAME):
                shutil.copyfile(source / name, target / name)
        except FileNotFoundError as error:
            raise ModelError(
                "the first stage that the latents were made with is gone, so the model would "
                "not open",
                where=source,
                fix="put it back and run the same command again: it resumes from the last "
                "checkpoint",
            ) from error
