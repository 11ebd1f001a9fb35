"""Open a checkpoint of latent-diffusion or RDM (CompVis) and save it in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdm.errors import ModelError
from rdm.models.compvis.layout import (
    first_stage_config,
    first_stage_modules,
    translate,
    unet_config,
    unet_modules,
)
from rdm.models.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from rdm.models.unconditional import UnconditionalConfig, build_unconditional, split_attention
from rdm.models.unet import DenoiserConfig, build_denoiser

_UNET, _EMA, _FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
# Parts of a first stage's own checkpoint that reconstruction does not need: losses, bookkeeping.
_TRAINING_ONLY = ("loss.", "model_ema.")


@dataclass(frozen=True)
class Imported:
    """A network with a checkpoint's weights.

    Attributes:
        model: diffusers' `UNet2DConditionModel`, `UNet2DModel`, `AutoencoderKL` or `VQModel`.
        config: its sizes.
        weights: `ema` or `plain`.
    """

    model: Any
    config: DenoiserConfig | UnconditionalConfig | AutoencoderConfig
    weights: str


def import_unet(
    state: Mapping[str, Tensor],
    *,
    use_ema: bool = True,
    sample_size: int = 64,
    head_dim: int = 32,
    num_heads: int | None = None,
) -> Imported:
    """Return the U-Net of an official checkpoint; `unet_config` says what the weights do not tell.

    Args:
        state: parameters of a whole model (`model.diffusion_model.*`), or of the U-Net alone
            without that prefix.
        use_ema: take the averaged weights, as the official samplers do, where the checkpoint has
            them.
        sample_size: side of the latents.
        head_dim: channels per attention head.
        num_heads: heads of every level, in place of head_dim.

    Raises:
        ModelError: parameters are missing, left over, or of another shape.
    """
    # A whole model's file holds more than the U-Net; the averages have names of their own.
    is_whole = any(name.startswith(_UNET) for name in state)
    parameters = without_prefix(state, _UNET) if is_whole else dict(state)
    averaged = use_ema and any(name.startswith(_EMA) for name in state)
    if averaged:
        parameters = _averaged(parameters, state)

    # The sizes are read off the weights.
    config = unet_config(
        parameters, sample_size=sample_size, head_dim=head_dim, num_heads=num_heads
    )

    # On `meta`, since fresh weights would be thrown away: the official ones are assigned.
    with torch.device("meta"):
        unconditional = isinstance(config, UnconditionalConfig)
        unet: Any = build_unconditional(config) if unconditional else build_denoiser(config).unet

    # diffusers has one layer each for q, k and v, the official unconditional U-Net one for all.
    parameters = split_attention(parameters, head_dim) if unconditional else parameters
    unet.load_state_dict(
        translate(parameters, unet.state_dict(), unet_modules(config)), assign=True
    )

    return Imported(unet.eval(), config, "ema" if averaged else "plain")


def import_first_stage(
    state: Mapping[str, Tensor],
    *,
    codebook: bool,
    scaling_factor: float = 1.0,
    sample_size: int = 256,
) -> Imported:
    """Return the first stage of an official checkpoint.

    Args:
        state: parameters of a whole model (`first_stage_model.*`), or of a first stage's own
            checkpoint.
        codebook: whether it is a VQ autoencoder.
        scaling_factor: the model's `scale_factor`; 1 for the ImageNet and FFHQ RDMs.
        sample_size: side of the training pictures.

    Raises:
        ModelError: parameters are missing, left over, or of another shape, or it is of the other
            kind.
    """
    whole = any(name.startswith(_FIRST_STAGE) for name in state)
    parameters = without_prefix(state, _FIRST_STAGE) if whole else dict(state)
    parameters = {
        name: value for name, value in parameters.items() if not name.startswith(_TRAINING_ONLY)
    }

    config = first_stage_config(parameters, sample_size=sample_size)
    if codebook != (config.codebook_size is not None):
        raise ModelError(
            f"the checkpoint {'has no' if codebook else 'has a'} codebook (quantize.embedding)",
            fix=f"import it with --kind {'kl' if codebook else 'vq'}-first-stage",
        )

    with torch.device("meta"):
        model: Any = build_autoencoder(config)
    model.load_state_dict(
        translate(parameters, model.state_dict(), first_stage_modules(config)), assign=True
    )

    model.register_to_config(scaling_factor=scaling_factor)
    return Imported(model.eval(), config, "plain")


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the parameters whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _averaged(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moving averages of parameters, which the official code names without dots."""
    names = {name: _EMA + ("diffusion_model." + name).replace(".", "") for name in parameters}
    if missing := sorted(official for official in names.values() if official not in state):
        raise ModelError(
            f"{len(missing)} averaged parameters are missing, first {missing[0]}",
            fix="import with --no-ema",
        )
    return {name: state[official] for name, official in names.items()}
