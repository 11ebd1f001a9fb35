"""A VQ first stage without training: the shipped KL autoencoder's means, and a codebook of their
k-means."""

from __future__ import annotations

from pathlib import Path

import faiss
import torch
from torch import Tensor

from rdm.models.first_stage.autoencoder import autoencoder_kl_f4_lite, build_autoencoder
from rdm.models.first_stage.first_stage import load_autoencoder


@torch.no_grad()
def make_vq_first_stage(
    directory: Path, pictures: Tensor, codebook_size: int, max_latents: int = 40_000
) -> str:
    """Write a `VQModel` with f = 4 and return its folder.

    Args:
        directory: is made.
        pictures: uint8 [N, 3, H, W], whose latents the codebook covers.
        codebook_size: rows of the codebook.
        max_latents: of which k-means makes it.
    """
    shipped = load_autoencoder("assets://autoencoder-kl-f4")
    model = build_autoencoder(
        autoencoder_kl_f4_lite().model_copy(update={"codebook_size": codebook_size})
    )
    state = {
        name: value
        for name, value in shipped.model.state_dict().items()
        if not name.startswith("quant_conv")
    }
    channels = shipped.latent_channels
    # The last two layers of the encoder, of which the means are the first half, as one.
    means = shipped.model.quant_conv.weight[:channels, :, 0, 0]
    state["encoder.conv_out.weight"] = torch.einsum(
        "oi,ikyx->okyx", means, state["encoder.conv_out.weight"]
    )
    state["encoder.conv_out.bias"] = (
        means @ state["encoder.conv_out.bias"] + shipped.model.quant_conv.bias[:channels]
    )
    state["quant_conv.weight"] = torch.eye(channels)[:, :, None, None]
    state["quant_conv.bias"] = torch.zeros(channels)
    latents = shipped.encode_moments(pictures)[0].permute(0, 2, 3, 1).reshape(-1, channels)
    kept = latents[
        torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))[:max_latents]
    ]
    clusters = faiss.Kmeans(channels, codebook_size, niter=10, seed=0, min_points_per_centroid=1)
    clusters.train(kept.numpy())
    state["quantize.embedding.weight"] = torch.from_numpy(clusters.centroids)
    model.load_state_dict(state)
    model.save_pretrained(str(directory), safe_serialization=True)
    return str(directory)
