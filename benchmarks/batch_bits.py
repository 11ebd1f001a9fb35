"""What a picture's bits depend on: the rows of its batch, its own row, the other rows, the threads.

`assets://rdm-64` and a fresh `rdm-tiny`, in float32 and bfloat16. Not counted among those that
`make bench` runs: it says what is so on a machine, and compares no speeds but those of filling up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.generators.conditions import Known
from rdm.generators.generator import Generator, GeneratorConfig
from rdm.generators.model_folder import open_conditions, open_model
from rdm.generators.sample_settings import SampleSettings
from rdm.generators.spaces import LatentSpace
from rdm.models.first_stage.first_stage import load_autoencoder, to_uint8
from rdm.models.precision import Precision, autocast
from rdm.recipes import recipe_config

SHAPES = (1, 4, 8, 16)
MODELS = os.environ.get("RDM_BENCHMARK_MODELS", "rdm-64,rdm-tiny").split(",")
THREADS = tuple(map(int, os.environ.get("RDM_BENCHMARK_THREADS", "1,2,3").split(",")))
STEPS, K = int(os.environ.get("RDM_BENCHMARK_STEPS", "3")), 4


def run() -> str:
    """Return the findings in words, a line for each model, precision and number of threads."""
    lines = []
    for name in MODELS:
        generator = _shipped() if name == "rdm-64" else _fresh()
        for precision in ("fp32", "bf16"):
            for threads in THREADS:
                torch.set_num_threads(threads)
                found = _findings(generator, precision)
                lines.append(f"{name}, {precision}, {threads} threads: {found}")
    return "\n  ".join(["", *lines])


def _shipped() -> Generator:
    return open_model("assets://rdm-64").generator


def _fresh() -> Generator:
    torch.manual_seed(0)
    objective = recipe_config("rdm-tiny").objective
    assert isinstance(objective, GeneratorConfig)
    space = LatentSpace.of(load_autoencoder("assets://autoencoder-kl-f4"))
    return Generator(objective, space, open_conditions(objective)).eval()


def _findings(generator: Generator, precision: Precision) -> str:
    seconds, pictures, positions, others = {}, {}, [], []
    for shape in SHAPES:
        strangers = [list(range(base, base + shape - 1)) for base in (100, 200)]
        started = time.process_time()
        first, second = (_draw(generator, [7, *some], precision)[0] for some in strangers)
        seconds[shape] = (time.process_time() - started) / 2
        pictures[shape] = first
        if not np.array_equal(first, second):
            others.append(shape)
        rows = _draw(generator, [7] * shape, precision)
        if any(not np.array_equal(row, rows[0]) for row in rows):
            positions.append(shape)
    base = pictures[1]
    shapes = [shape for shape in SHAPES if not np.array_equal(pictures[shape], base)]
    most = max(int(np.abs(pictures[n].astype(int) - base).max()) for n in SHAPES)
    each = ", ".join(f"{shape}: {seconds[shape] / shape:.3f}" for shape in SHAPES)
    return (
        f"other rows matter at {others or 'no shape'}, the row at {positions or 'no shape'}; "
        f"shapes that differ from one row {shapes or 'none'}, by {most} of 255 at most; "
        f"processor seconds a picture {each}"
    )


@torch.no_grad()
def _draw(generator: Generator, seeds: Sequence[int], precision: Precision) -> NDArray[np.uint8]:
    """Return the pictures of seeds, each with neighbors of its own, drawn as one batch."""
    settings = SampleSettings(k=K, num_steps=STEPS)
    with autocast(generator.device, precision):
        x0 = generator.head.sample(
            generator.network,
            generator.context([Known(neighbors=_neighbors(seed, generator)) for seed in seeds]),
            generator.config.network.sample_shape,
            seeds,
            generator.effective(settings),
        )
    return to_uint8(generator.space.to_pictures(x0))


def _neighbors(seed: int, generator: Generator) -> torch.Tensor:
    dim = generator.config.network.cross_attention_dim or 0
    rows = np.random.default_rng(seed).standard_normal((K, dim)).astype(np.float32)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
