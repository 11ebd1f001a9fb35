"""Models small enough to ship: 16-bit weights, and first stages that are assets by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from rdm.errors import ModelError, StorageError
from rdm.generators.model_first_stage import FIRST_STAGE
from rdm.generators.model_folder import INFO, NETWORK, ModelInfo, read_info
from rdm.models.assets import is_asset, named_folder
from rdm.models.first_stage.first_stage_folder import WEIGHTS_NAME, latents_digest
from rdm.storage.files import storage_errors

HalfPrecision = Literal["fp16", "bf16"]


def export_model(
    model: str, out: Path, precision: HalfPrecision = "fp16", autoencoder: str | None = None
) -> int:
    """Write a copy of a model with 16-bit weights; return its size in bytes.

    Args:
        model: a folder that training wrote.
        out: a new folder.
        precision: fp16 keeps 11 bits of each weight, bf16 8; both open as float32.
        autoencoder: another first stage of the same latents, such as an asset, or one with a better
            decoder; None: the model's own.

    Raises:
        ModelError: there is no model, or the first stage has other latents.
        StorageError: the folder exists.
    """
    source = named_folder(model, INFO, "model")
    info, weights = read_info(source), _weights_name(source)
    if weights is None:
        raise ModelError(
            "the model has no network with safetensors weights",
            where=source,
            fix="train or export again",
        )
    if out.exists():
        raise StorageError("the folder exists already", where=out, fix="give --out a new folder")

    with storage_errors(out):
        shutil.copytree(source / NETWORK, out / NETWORK, ignore=shutil.ignore_patterns(weights))
        _write_halved(source / NETWORK / weights, out / NETWORK / weights, precision)
        if info.autoencoder is not None:
            placed = _place_first_stage(source, out, info, autoencoder)
            info = info.model_copy(update={"autoencoder": placed})
        (out / INFO).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _weights_name(source: Path) -> str | None:
    """Return the file of a network's weights, as diffusers or transformers call it."""
    names = (WEIGHTS_NAME, "model.safetensors")
    return next((name for name in names if (source / NETWORK / name).is_file()), None)


def _write_halved(source: Path, target: Path, precision: HalfPrecision) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    weights = {name: tensor.to(dtype) for name, tensor in load_file(source).items()}
    # fp16 ends at 65,504: a larger weight would become infinite, and no picture would be finite.
    if broken := [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]:
        raise ModelError(
            f"{broken[0]} does not fit into {precision}", where=source, fix="--precision bf16"
        )
    save_file(weights, target, metadata={"format": "pt"})
    # safetensors writes for the owner alone
    shutil.copymode(target.with_name("config.json"), target)


def _place_first_stage(source: Path, out: Path, info: ModelInfo, autoencoder: str | None) -> str:
    """Put the first stage where the copy finds it, and return its name there."""
    own = str(info.autoencoder)
    chosen = autoencoder or (own if is_asset(own) else str(source / own))
    if (found := latents_digest(chosen)) != info.latents_digest:
        raise ModelError(
            f"the model draws latents of the first stage {info.latents_digest}, not of {found}",
            where=chosen,
            fix="name a first stage with the same encoder, or leave --autoencoder out",
        )

    # An asset is named and not copied: every installation has it.
    if is_asset(chosen):
        return chosen
    folder = named_folder(chosen, WEIGHTS_NAME, "first stage")
    (out / FIRST_STAGE).mkdir()
    for name in ("config.json", WEIGHTS_NAME):
        shutil.copyfile(folder / name, out / FIRST_STAGE / name)
    return FIRST_STAGE
