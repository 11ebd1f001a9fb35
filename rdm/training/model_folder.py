"""A model's folder: its description `model.json`, and its first stage, under names that hold on every machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdm.config import Config
from rdm.errors import ModelError
from rdm.models.first_stage.first_stage import FirstStage, load_autoencoder
from rdm.models.first_stage.folder import ASSET_PREFIX, WEIGHTS_NAME
from rdm.storage.files import storage_errors

INFO = "model.json"
FIRST_STAGE = "first_stage"


def model_info(config: Config, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a model: its objective, and what it was trained with."""
    return {"format": "retrieval-diffusion-model", "objective": config.model_dump(mode="json"), **provenance}


def write_info(directory: Path, info: Mapping[str, Any]) -> None:
    """Write a model's description, and a copy of its first stage (a few MB) unless that is an asset.

    No absolute path is written, so that the folder opens wherever it is copied to: of the photographs' source and of
    the encoder the last part of a path stays.

    Raises:
        ModelError: the first stage's folder is gone.
    """
    portable = dict(info)
    name = str(info["autoencoder"])
    if not name.startswith(ASSET_PREFIX):
        _copy_first_stage(Path(name), directory / FIRST_STAGE)
        portable["autoencoder"] = FIRST_STAGE
    if "encoder" in info:
        portable["encoder"] = portable_name(info["encoder"])
    if (database := info.get("database")) and "source" in database:
        portable["database"] = {**database, "source": portable_name(database["source"])}
    text = json.dumps(portable, indent=1, sort_keys=True)
    (directory / INFO).write_text(text + "\n", encoding="utf-8")


def open_first_stage(directory: Path, info: Mapping[str, Any]) -> FirstStage:
    """Open the first stage of a model: an asset, or a folder inside the model's.

    Raises:
        ModelError: it is not there, cannot be opened, or is not the one that the model was trained with.
    """
    name = str(info["autoencoder"])
    if not name.startswith(ASSET_PREFIX):
        place = directory / FIRST_STAGE
        if not place.is_dir():
            raise ModelError(
                "the model's folder lacks its first stage", where=place, fix="copy the model's whole folder again"
            )
        name = str(place)
    first_stage = load_autoencoder(name)
    if first_stage.latents_digest != info["latents_digest"]:
        raise ModelError(
            "the model was trained with another first stage",
            where=name,
            fix="restore that first stage, or train again",
        )
    return first_stage


def portable_name(name: str) -> str:
    """Return the name of a source or an encoder with only the last part of an absolute path in it.

    `folder:///home/me/birds` becomes `folder://birds`, `open_clip:ViT-B-32//home/me/w.pt` becomes
    `open_clip:ViT-B-32/w.pt`; a name without a path stays as it is.
    """
    scheme, separator, rest = name.partition("://")
    if separator:
        path, question, query = rest.partition("?")
        kept = f"{question}{query}" if "/" not in query else ""
        return f"{scheme}://{_last_part(path)}{kept}"
    kind, colon, rest = name.partition(":")
    model, slashes, path = rest.partition("//")
    if slashes:
        return f"{kind}{colon}{model}/{_last_part('/' + path)}"
    return f"{kind}{colon}{_last_part(rest)}" if colon else _last_part(name)


def _last_part(path: str) -> str:
    return Path(path).name if path.startswith(("/", "~")) else path


def _copy_first_stage(source: Path, target: Path) -> None:
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        try:
            for name in ("config.json", WEIGHTS_NAME):
                shutil.copyfile(source / name, target / name)
        except FileNotFoundError as error:
            raise ModelError(
                "the first stage that the latents were made with is gone, so the model would not open",
                where=source,
                fix="put it back and run the same command again: it resumes from the last checkpoint",
            ) from error
