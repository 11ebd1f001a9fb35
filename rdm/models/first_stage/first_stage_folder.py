"""A first stage's folder, without its network: where a name leads, and a digest of its latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdm.errors import ModelError
from rdm.models.assets import named_folder

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
CLASSES = ("AutoencoderKL", "VQModel")
# Settings that decide a latent, with diffusers' value where a field is absent: newer versions add
# some.
_DECIDING = {
    "act_fn": "silu",
    "block_out_channels": [64],
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
}
_ENCODING = ("encoder.", "quant_conv.", "quantize.")  # the weights that decide a latent


def first_stage_folder(name_or_dir: str) -> tuple[Path, str]:
    """Return the folder of a first stage and the class of its network: AutoencoderKL or VQModel.

    Raises:
        ModelError: it does not exist, is neither of the two, or has no safetensors weights.
    """
    directory = named_folder(name_or_dir, WEIGHTS_NAME, "first stage")
    return directory, _class_in(directory)


def latents_digest(name_or_dir: str) -> str:
    """Return 16 hexadecimal digits of a first stage's latents: of its encoding files and settings.

    First stages of equal digests differ in their decoders alone: latents of one can be decoded by
    the other.

    Raises:
        ModelError: it cannot be opened.
    """
    from safetensors.torch import load_file

    directory, _ = first_stage_folder(name_or_dir)
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return digest_of_latents(config, load_file(directory / WEIGHTS_NAME).items())
    except Exception as error:  # safetensors and json each raise their own on a damaged file
        raise cannot_be_opened(directory, error) from error


def digest_of_latents(config: Mapping[str, Any], weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return the digest of a configuration and of the weights that encode.

    Names and shapes do not count: versions of diffusers call and shape the same attention weights
    differently.
    """
    # Of each tensor its own digest, sorted, so that neither names nor order count.
    digest = hashlib.sha256(_deciding(config))
    encoding = [tensor for name, tensor in weights if name.startswith(_ENCODING)]
    for line in sorted(hashlib.sha256(_bytes(tensor)).hexdigest() for tensor in encoding):
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def digest_of_all(config: Mapping[str, Any], weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return the digest of a configuration and every weight: equal digests make equal pictures."""
    digest = hashlib.sha256(_deciding(config))
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _deciding(config: Mapping[str, Any]) -> bytes:
    """Return the settings that decide a latent, as JSON."""
    deciding = {key: config.get(key, default) for key, default in _DECIDING.items()}
    return json.dumps(deciding, sort_keys=True, default=list).encode()


def cannot_be_opened(directory: Path, error: Exception) -> ModelError:
    """Return the error of a first stage whose files are damaged."""
    return ModelError(
        f"the autoencoder cannot be opened: {type(error).__name__}: {error}",
        where=directory,
        fix="restore its files, or export it again",
    )


def _bytes(tensor: Tensor) -> bytes:
    """Return a tensor's numbers as float32: a file of 16 bits and its widened copy are the same."""
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()


def _class_in(directory: Path) -> str:
    """Return the class of the network in a directory that has all files."""
    # A folder of diffusers says its own class.
    config = directory / "config.json"
    if not config.is_file():
        raise ModelError(
            "there is no autoencoder here",
            where=directory,
            fix="name assets://autoencoder-kl-f4 or -vq-f4, or the folder of a diffusers "
            "AutoencoderKL or VQModel",
        )

    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "config.json is not a diffusers configuration",
            where=config,
            fix="restore it, or export the autoencoder again",
        ) from error

    if kind not in CLASSES:
        raise ModelError(
            f"this is a {kind}, not an AutoencoderKL or VQModel",
            where=config,
            fix="name an autoencoder's folder",
        )

    # Only safetensors: other formats can run code.
    if not (directory / WEIGHTS_NAME).is_file():
        raise ModelError(
            f"there is no {WEIGHTS_NAME}; other weights are not read, because a pickle can "
            "run code",
            where=directory,
            fix="save the autoencoder again with safe_serialization=True",
        )

    return kind
