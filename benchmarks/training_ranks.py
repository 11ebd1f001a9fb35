"""What a benchmark of training needs: ranks of a job without data on disk, each of which prints one
line of JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from rdm.generators.model_folder import open_conditions, open_space
from rdm.generators.provenance import Provenance
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.recipes import recipe_config
from rdm.training.config import TrainConfig
from rdm.training.engine.deepspeed_engine import Engine, MicroBatch
from rdm.training.objectives.generative import GenerativeObjective


def run_ranks(module: str, num_ranks: int, threads: int, *arguments: str) -> list[Any]:
    """Return what `python -m MODULE ARGUMENTS` printed on each rank, in order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_ranks),
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": "cpu",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    printed = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"{module} failed; run it alone to see why")
    return [json.loads(text.strip().split("\n")[-1]) for text in printed]


def tiny_config(*settings: str) -> TrainConfig:
    """Return `rdm-tiny` with settings."""
    return recipe_config("rdm-tiny").with_overrides(["device=cpu", *settings])


def build_engine(config: TrainConfig) -> Engine:
    """Return this rank's engine around a fresh network."""
    torch.manual_seed(0)
    assert config.objective.kind == "generative"
    first_stage = load_autoencoder("assets://autoencoder-kl-f4")
    space = open_space(config.objective.space, first_stage, config.objective.network.sample_shape)
    objective = GenerativeObjective(
        config.objective, Provenance(), space, open_conditions(config.objective)
    )
    share = config.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    return Engine(objective, config, config.micro_batch_size or share)


def micro_batches(config: TrainConfig, engine: Engine, step: int) -> list[MicroBatch]:
    """Return random latents and neighbors in place of a cache's."""
    assert config.objective.kind == "generative"
    network, conditioning = config.objective.network, config.objective.conditions.neighbors
    assert network.kind == "unet"
    assert conditioning is not None
    size = config.batch_size // engine.world_size // engine.accumulation
    draw = torch.Generator().manual_seed(step)

    def one() -> dict[str, Tensor]:
        side, width = network.sample_size, network.cross_attention_dim
        return {
            "moments": torch.randn(
                size, 2 * network.in_channels, side, side, generator=draw
            ).half(),
            "neighbors": torch.randn(size, conditioning.num_loaded, width, generator=draw).half(),
        }

    return [
        (one(), torch.Generator().manual_seed(number), number)
        for number in range(engine.accumulation)
    ]
