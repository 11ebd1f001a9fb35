"""Weights of one first stage for another of the same sizes, also from KL to VQ."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rdm.errors import ModelError
from rdm.models.first_stage.first_stage import FirstStage

_CODEBOOK = "quantize.embedding.weight"


def weights_to_go_on_from(stage: FirstStage, shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a first stage's weights for an autoencoder of the same sizes.

    A VQ autoencoder gets a KL autoencoder's weights with the encoder of the posterior mean, and
    without a codebook.

    Args:
        stage: the source of the weights.
        shapes: the state dict of the autoencoder that gets them.

    Raises:
        ModelError: it has other sizes.
    """
    weights = stage.model.state_dict()
    expected = {name: value.shape for name, value in shapes.items()}
    # From KL to VQ: the encoder gives the mean alone, and the codebook has no counterpart.
    if _CODEBOOK in expected and stage.codebook is None:
        weights = _encoder_of_the_mean(weights, stage.latent_channels)
        del expected[_CODEBOOK]

    if {name: value.shape for name, value in weights.items()} != expected:
        raise ModelError(
            "this first stage has another network than the one to be trained",
            where=stage.name,
            fix="set objective.network to its sizes, or objective.start=projection",
        )
    return weights


def _encoder_of_the_mean(weights: Mapping[str, Tensor], latent_channels: int) -> dict[str, Tensor]:
    """Fold the half of a KL autoencoder's `quant_conv` that makes the mean into `conv_out`."""
    # A 1x1 convolution of a convolution is one convolution: mix its filters and its bias.
    found = dict(weights)
    weight, bias = found["encoder.conv_out.weight"], found["encoder.conv_out.bias"]
    if "quant_conv.weight" in found:
        mix = found["quant_conv.weight"][:latent_channels, :, 0, 0]
        weight = torch.einsum("oi,ichw->ochw", mix, weight)
        bias = mix @ bias + found["quant_conv.bias"][:latent_channels]

    # Of [mean, log-variance] only the mean is kept, and the 1x1 convolutions become the identity.
    found["encoder.conv_out.weight"], found["encoder.conv_out.bias"] = (
        weight[:latent_channels],
        bias[:latent_channels],
    )
    found["quant_conv.weight"] = torch.eye(latent_channels)[:, :, None, None]
    found["quant_conv.bias"] = torch.zeros(latent_channels)

    if "post_quant_conv.weight" not in found:
        found["post_quant_conv.weight"] = torch.eye(latent_channels)[:, :, None, None]
        found["post_quant_conv.bias"] = torch.zeros(latent_channels)
    return found
