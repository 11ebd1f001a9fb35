"""The samplers by name on `assets://rdm-64`: what steps buy, and what drawing costs.

Each picture is drawn from the four nearest photographs of an embedded one. The curve is the Frechet
distance, in the encoder's 512 numbers, of pictures by each sampler to those photographs, all with
the same seeds and neighbors; RDM_BENCHMARK_OUT names a folder for its figures
(`sampler-steps.json`) and its plot (`sampler-steps.svg`). One thread, processor seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.timing import paired_ratio
from rdm.context import Context
from rdm.diffusion.sampler_names import SAMPLERS
from rdm.diffusion.samplers import seeded_noise
from rdm.encoders import load_encoder
from rdm.evaluation.metrics.fid import InceptionFeatures, frechet_distance, kernel_distance
from rdm.generators.conditions import Known
from rdm.generators.model_folder import Model, open_model
from rdm.generators.sample_settings import SampleSettings
from rdm.models.first_stage.first_stage import to_uint8
from rdm.models.precision import autocast
from rdm.sources import decode_image, open_source

STEPS = (5, 10, 20, 50)
PICTURES = int(os.environ.get("RDM_BENCHMARK_PICTURES", "64"))
JUDGED = int(os.environ.get("RDM_BENCHMARK_JUDGED", "128"))
ROUNDS = int(os.environ.get("RDM_BENCHMARK_ROUNDS", "3"))
BATCH = 16
NEIGHBORS = 4

FAST = SampleSettings(sampler="dpm++2m", spacing="karras", num_steps=20, guidance_scale=1)
SLOW = SampleSettings(num_steps=100, guidance_scale=1)


def run() -> str:
    """Return the figures in words."""
    torch.set_num_threads(1)
    model, encoder = open_model("assets://rdm-64"), load_encoder("assets://encoder-lite")
    photographs = _photographs(max(PICTURES, JUDGED, BATCH))
    vectors = encoder.encode_images(
        np.stack([encoder.preprocess(Image.fromarray(one)) for one in photographs])
    )
    context = _context(model, vectors)

    words = [_speed(model, context), _judged(model, context, photographs)]
    if out := os.environ.get("RDM_BENCHMARK_OUT"):
        curve = _curve(model, context, encoder, vectors[:PICTURES])
        Path(out, "sampler-steps.json").write_text(json.dumps(curve, indent=1) + "\n")
        _plot(curve, Path(out, "sampler-steps.svg"))
        words.append(f"curve of {PICTURES} pictures a point in {out}")
    return "; ".join(words)


def _photographs(count: int) -> list[NDArray[np.uint8]]:
    """Return embedded photographs uint8 [64, 64, 3], cropped to their middle square."""
    source = open_source("samples://openimages-birds")
    urls = source.listing().column("location").to_pylist()[:count]
    pictures = [ImageOps.fit(decode_image(source.read(url)), (64, 64)) for url in urls]
    return [np.asarray(picture) for picture in pictures]


def _context(model: Model, vectors: NDArray[Any]) -> Context:
    """Return a context of each photograph's nearest others."""
    unit = torch.from_numpy(np.asarray(vectors, np.float32))
    unit = torch.nn.functional.normalize(unit, dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-1).topk(NEIGHBORS, dim=1).indices
    return model.generator.context([Known(neighbors=unit[row]) for row in nearest])


def _drawn(
    model: Model, context: Context, settings: SampleSettings, count: int
) -> list[NDArray[np.uint8]]:
    pictures: list[NDArray[np.uint8]] = []
    for start in range(0, count, BATCH):
        seeds = range(start, min(start + BATCH, count))
        pictures += list(to_uint8(model.draw(context.rows(torch.tensor(seeds)), seeds, settings)))
    return pictures


def _speed(model: Model, context: Context) -> str:
    """Return the ratios of time in words, all at a batch of 16."""
    rows, seeds = context.rows(torch.arange(BATCH)), range(BATCH)
    few = FAST.model_copy(update={"num_steps": 10})

    def draw(settings: SampleSettings) -> Callable[[], object]:
        return lambda: model.draw(rows, seeds, settings)

    clock = time.process_time
    ratio, fast, slow = paired_ratio(draw(FAST), draw(SLOW), ROUNDS, clock)
    guided, _, _ = paired_ratio(
        draw(few), draw(few.model_copy(update={"guidance_scale": 2.0})), ROUNDS, clock
    )
    whole, _, _ = paired_ratio(
        lambda: _bare(model, rows, FAST.num_steps), draw(FAST), ROUNDS, clock
    )
    loop, ours, theirs = paired_ratio(
        draw(few.model_copy(update={"sampler": "ddim", "spacing": "uniform", "guidance_scale": 2})),
        lambda: _diffusers_loop(model, rows, few.num_steps),
        ROUNDS,
        clock,
    )
    return (
        f"20-step dpm++2m {BATCH / fast:.2f} pictures/s, {ratio:.1f}x 100-step DDIM "
        f"({BATCH / slow:.2f}); guidance in one call {guided:.2f}x of none; drawing "
        f"{100 * (whole - 1):+.1f}% over its bare network calls; 10 guided DDIM steps "
        f"{loop:.2f}x diffusers' own loop ({BATCH / ours:.2f} against {BATCH / theirs:.2f})"
    )


@torch.no_grad()
def _bare(model: Model, context: Context, num_steps: int) -> object:
    """Call the network as often as a drawing does, and the first stage once."""
    x = torch.randn(BATCH, *model.config.network.sample_shape)
    t = torch.full((BATCH,), 500)
    with autocast(model.device):
        for _ in range(num_steps):
            predicted = model.generator.network(x, t, context)
    return model.generator.space.to_pictures(predicted)


@torch.no_grad()
def _diffusers_loop(model: Model, context: Context, num_steps: int) -> object:
    """Draw as diffusers' pipelines do: float32, guidance by a doubled batch, DDIMScheduler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    unet: Any = model.generator.network.core
    scheduler = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(num_steps)
    both = context.null().concatenated(context)
    x = seeded_noise(range(BATCH), model.config.network.sample_shape)
    for t in scheduler.timesteps:
        predicted = unet(
            torch.cat([x, x]), t, encoder_hidden_states=both.tokens, class_labels=both.vector
        ).sample
        unconditional, conditional = predicted.chunk(2)
        guided = unconditional + 2.0 * (conditional - unconditional)
        x = scheduler.step(guided, int(t), x, eta=1.0).prev_sample  # type: ignore[union-attr]
    return model.generator.space.to_pictures(x)


def _judged(model: Model, context: Context, photographs: Sequence[NDArray[np.uint8]]) -> str:
    """Return both distances of few-step and many-step pictures to the photographs, in words."""
    network = InceptionFeatures()
    reference = network(photographs[:JUDGED])
    found = {
        name: network(_drawn(model, context, settings, JUDGED))
        for name, settings in (
            ("20-step dpm++2m", FAST),
            ("20-step dpm++2m-sde", FAST.model_copy(update={"sampler": "dpm++2m-sde"})),
            ("100-step DDIM", SLOW),
        )
    }
    return f"{JUDGED} pictures: " + ", ".join(
        f"{name} FID {frechet_distance(features, reference):.1f} "
        f"KID {1000 * kernel_distance(features, reference):.1f}e-3"
        for name, features in found.items()
    )


def _curve(
    model: Model, context: Context, encoder: Any, reference: NDArray[Any]
) -> dict[str, dict[str, float]]:
    """Return the distance by sampler and steps; Heun's and PLMS's steps are counted as named."""
    curve: dict[str, dict[str, float]] = {}
    for name, facts in SAMPLERS.items():
        spacing = "karras" if facts.ends_clean and "karras" in facts.spacings else "uniform"
        curve[name] = {}
        for num_steps in STEPS:
            settings = SampleSettings(
                sampler=name, num_steps=num_steps, spacing=spacing, guidance_scale=1
            )
            pictures = _drawn(model, context, settings, PICTURES)
            features = encoder.encode_images(
                np.stack([encoder.preprocess(Image.fromarray(one)) for one in pictures])
            )
            distance = frechet_distance(
                np.asarray(features, np.float64), np.asarray(reference, np.float64)
            )
            curve[name][str(num_steps)] = round(distance, 4)
            print(name, num_steps, curve[name][str(num_steps)], flush=True)
    return curve


def _plot(curve: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sampler-steps", "font.size": 10}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for place, (name, points) in enumerate(curve.items()):
            steps = [int(step) for step in points]
            style = "--" if name in ("ddpm", "dpm++2m-sde", "ddim") else "-"
            axes.plot(steps, list(points.values()), f"o{style}", color=f"C{place}", label=name)
        axes.set_xscale("log")
        axes.set_xticks(STEPS, labels=[str(step) for step in STEPS])
        axes.minorticks_off()
        axes.set(xlabel="steps", ylabel="Frechet distance (encoder-lite)")
        axes.grid(alpha=0.3)
        axes.legend(ncols=2, fontsize=9, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
