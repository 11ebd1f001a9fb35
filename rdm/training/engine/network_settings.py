"""Settings applied to networks: memory format, activation checkpointing, compilation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rdm.errors import TrainingError
from rdm.training.config import TrainConfig

SETTINGS = ("activation_checkpointing", "compile", "channels_last")


def prepare_networks(networks: Sequence[nn.Module], config: TrainConfig) -> None:
    """Apply the settings that act on the networks themselves.

    Raises:
        TrainingError: a setting has nothing to act on.
    """
    # A setting without an effect is refused: it would stand in the run's record as if it had one.
    asked = [name for name in SETTINGS if getattr(config, name)]
    has_convolutions = any(p.dim() == 4 for network in networks for p in network.parameters())
    refused = [
        name for name in asked if not networks or (name == "channels_last" and not has_convolutions)
    ]
    if refused:
        raise TrainingError(
            f"the recipe {config.recipe} does not offer {', '.join(refused)}",
            fix=f"--set {refused[0]}=false",
        )

    for network in networks:
        if config.channels_last:
            lay_out_channels_last(network)
        if config.activation_checkpointing:
            checkpoint_activations(network)
        if config.compile:
            for part in _compiled_parts(network):
                part.compile()


def lay_out_channels_last(network: nn.Module) -> None:
    """Give every convolution its input in the channels-last format, which its output then has.

    Parameters stay as they are: DeepSpeed sends and flattens them, and cannot in other formats.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_channels_last_input)


def checkpoint_activations(network: Any) -> None:
    """Let a network of diffusers or transformers recompute its activations backward."""
    if hasattr(network, "enable_gradient_checkpointing"):
        network.enable_gradient_checkpointing()
    else:
        network.activation_checkpointing_enable()


def networks_of(module: nn.Module) -> list[nn.Module]:
    """Return a module's outermost networks of diffusers or transformers."""
    if hasattr(module, "enable_gradient_checkpointing") or hasattr(
        module, "activation_checkpointing_enable"
    ):
        return [module]
    return [network for child in module.children() for network in networks_of(child)]


def _compiled_parts(network: Any) -> list[nn.Module]:
    """Return the modules to compile: an autoencoder's blocks, or the network as a whole.

    A loss calls the halves of an autoencoder and not the whole, and records what the decoder's last
    layer is given by a hook of its own in every pass, which a compiled decoder would not see.
    """
    if not hasattr(network, "decoder"):
        return [network]
    encoder, decoder = network.encoder, network.decoder
    return [*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks]


def _channels_last_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous(memory_format=torch.channels_last) for value in inputs)
