"""Every network of a generator: one union of configurations; how each is built, saved, opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import Tensor

from rdm.models.token_predictor import (
    TokenPredictor,
    TokenPredictorConfig,
    build_token_predictor,
    load_token_predictor,
    save_token_predictor,
)
from rdm.models.unconditional import UnconditionalConfig, UnconditionalDenoiser, build_unconditional
from rdm.models.unet import Denoiser, DenoiserConfig, build_denoiser, load_denoiser, open_unet

NetworkConfig = Annotated[
    DenoiserConfig | UnconditionalConfig | TokenPredictorConfig, Field(discriminator="kind")
]
Network: TypeAlias = Denoiser | UnconditionalDenoiser | TokenPredictor


def build_network(config: DenoiserConfig | UnconditionalConfig | TokenPredictorConfig) -> Network:
    """Return a network with fresh weights."""
    if isinstance(config, TokenPredictorConfig):
        return build_token_predictor(config)
    if isinstance(config, UnconditionalConfig):
        return UnconditionalDenoiser(build_unconditional(config))
    return build_denoiser(config)


def network_with(
    config: DenoiserConfig | UnconditionalConfig | TokenPredictorConfig, state: Mapping[str, Tensor]
) -> Network:
    """Return a network with given weights by parameter name.

    Raises:
        RuntimeError: the weights are those of another network.
    """
    network = build_network(config)
    # A parameter that shares its storage with another is named once among the parameters.
    shared = set(network.state_dict()) - {name for name, _ in network.named_parameters()}
    # Not strict, because of shared storage alone; everything else that is missing is refused below.
    wrong = network.load_state_dict(dict(state), strict=False)
    if wrong.unexpected_keys or not shared.issuperset(wrong.missing_keys):
        raise RuntimeError(
            f"weights of another network: {[*wrong.unexpected_keys, *wrong.missing_keys][:3]}"
        )
    return network


def save_network(network: Network, directory: Path) -> None:
    """Write a network in the layout of its library, diffusers or transformers, as safetensors."""
    if isinstance(network, TokenPredictor):
        save_token_predictor(network, directory)
    else:
        network.unet.save_pretrained(str(directory), safe_serialization=True)


def load_network(
    directory: Path, config: DenoiserConfig | UnconditionalConfig | TokenPredictorConfig
) -> Network:
    """Open a network that `save_network` wrote, in evaluation mode.

    Raises:
        ModelError: the directory holds no such network, or it is damaged.
    """
    if isinstance(config, TokenPredictorConfig):
        return load_token_predictor(directory, config)
    if isinstance(config, DenoiserConfig):
        return load_denoiser(directory)
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UnconditionalDenoiser(open_unet(UNet2DModel, directory)).eval()
