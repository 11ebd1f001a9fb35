"""One forward and backward pass of the ImageNet RDM's U-Net against the official implementation's,
with equal weights.

It needs a checkout of CompVis/latent-diffusion outside this repository, whose U-Net is the one that
RDM trains:

    RDM_OFFICIAL_CHECKOUT=/path/to/latent-diffusion python -m benchmarks official_unet
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import types
from typing import Any

import torch

from benchmarks.timing import paired_ratio
from rdm.models.compvis.import_checkpoint import import_unet
from rdm.models.unet import rdm_imagenet_denoiser

BATCH, THREADS, ROUNDS = 2, 2, int(os.environ.get("RDM_BENCHMARK_ROUNDS", "2"))


def run() -> str:
    """Return the ratios in words."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    official = _official(os.environ["RDM_OFFICIAL_CHECKOUT"])
    ours = import_unet(official.state_dict(), use_ema=False).model.train()
    ours.to(memory_format=torch.channels_last)
    x, tokens = torch.randn(BATCH, 3, 64, 64), torch.randn(BATCH, 4, 512)
    t = torch.tensor([10, 700])

    def theirs() -> torch.Tensor:
        return official(x, timesteps=t, context=tokens)

    def mine() -> torch.Tensor:
        return ours(
            x.contiguous(memory_format=torch.channels_last), t, encoder_hidden_states=tokens
        ).sample

    def mine_bf16() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return mine()

    with torch.no_grad():
        difference = (theirs() - mine()).abs().max().item()
    lines = [f"outputs differ by {difference:.1e} at most"]
    for checkpointing in (False, True):
        for module in official.modules():
            for name in ("checkpoint", "use_checkpoint"):
                if isinstance(getattr(module, name, None), bool):
                    setattr(module, name, checkpointing)
        for name, function in (("fp32", mine), ("bf16", mine_bf16)):
            ratio, fast, slow = paired_ratio(
                lambda f=function: _pass(f, ours), lambda: _pass(theirs, official), ROUNDS
            )
            recomputing = (
                ", which recomputes activations as its configuration asks" if checkpointing else ""
            )
            lines.append(
                f"{name} {ratio:.2f}x ({fast:.2f} s) the official fp32 ({slow:.2f} s{recomputing})"
            )
            sys.stderr.write(lines[-1] + "\n")
    return "; ".join(lines)


def _pass(forward: Any, network: torch.nn.Module) -> None:
    forward().float().square().mean().backward()
    network.zero_grad(set_to_none=True)


def _official(checkout: str) -> Any:
    """Return the official U-Net with random weights, none of them zero."""
    sys.path.append(checkout)
    # The official code asks whether a list is one of omegaconf's; that package is not needed for
    # anything else.
    lists = types.ModuleType("omegaconf.listconfig")
    vars(lists)["ListConfig"] = list
    sys.modules.setdefault("omegaconf", types.ModuleType("omegaconf"))
    sys.modules.setdefault("omegaconf.listconfig", lists)
    from ldm.modules.diffusionmodules.openaimodel import UNetModel  # pyright: ignore[reportMissingImports]

    config = rdm_imagenet_denoiser()
    first = config.block_out_channels[0]
    with contextlib.redirect_stdout(io.StringIO()):
        network = UNetModel(
            image_size=config.sample_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            model_channels=first,
            attention_resolutions=[
                2**level for level, attends in enumerate(config.attention_levels) if attends
            ],
            num_res_blocks=config.layers_per_block,
            channel_mult=[channels // first for channels in config.block_out_channels],
            num_head_channels=config.head_dim,
            use_spatial_transformer=True,
            context_dim=config.cross_attention_dim,
        )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network
