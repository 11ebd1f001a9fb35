"""From what conditions pictures to pictures: the half of sampling that needs no database."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdm.generators.conditions import Known
from rdm.generators.heads import Negative
from rdm.generators.model_folder import Model, ModelInfo
from rdm.generators.sample_settings import OnDrawStep, SampleSettings
from rdm.models.first_stage.first_stage import to_uint8
from rdm.sampling.drawing.batches import FilledBatch, filled_batches, rows_at_once
from rdm.sampling.drawing.start import OpenedStart
from rdm.sampling.retrieval.conditioning import Conditioning, Tokens


def draw(
    model: Model,
    asked: Sequence[Conditioning],
    settings: SampleSettings,
    on_step: OnDrawStep | None = None,
    start: OpenedStart | None = None,
    first_row: int = 0,
) -> NDArray[np.uint8]:
    """Return pictures uint8 [N, H, W, 3], drawn from what conditions them alone.

    Picture i depends on its own conditioning and seed only: batches have one shape, see `batches`.
    It is row i of the first, or i less a multiple of the shape of a later one.

    Args:
        model: draws.
        asked: of each picture, with as many tokens each.
        settings: how to draw; those of the look-up, as k, say nothing here.
        on_step: called after each step; what it raises ends the drawing.
        start: what drawing starts from; None: the seeds' noise.
        first_row: where in the first batch the first picture is.

    Raises:
        UsageError: the model cannot draw with these settings.
        ValueError: the pictures differ in their numbers of tokens, or in whether they are led away
            from something and how.
    """
    pictures = [
        draw_filled(model, batch, settings, on_step, start)[0]
        for batch in filled_batches(asked, rows_at_once(settings, model.device), first_row)
    ]
    return np.concatenate(pictures)


def draw_filled(
    model: Model,
    batch: FilledBatch[Conditioning],
    settings: SampleSettings,
    on_step: OnDrawStep | None = None,
    start: OpenedStart | None = None,
) -> tuple[NDArray[np.uint8], Tensor]:
    """Return pictures uint8 [B, H, W, 3] of a batch's rows that count, and their samples [B, ...]
    in the model's space; otherwise as `draw`."""
    latents = draw_latents(model, batch.rows, settings, batch.listener(on_step), start)
    pictures = batch.counted(to_uint8(model.generator.space.to_pictures(latents)))
    kept = latents[batch.first : batch.first + batch.count]
    return pictures if start is None else start.finished(pictures), kept


@torch.no_grad()
def draw_latents(
    model: Model,
    asked: Sequence[Conditioning],
    settings: SampleSettings,
    on_step: OnDrawStep | None = None,
    start: OpenedStart | None = None,
) -> Tensor:
    """Return samples [B, ...] in the model's space, of one batch as it is; otherwise as `draw`."""
    _check_alike(asked)
    generator, seeds = model.generator, [one.seed for one in asked]
    context = generator.context(known_of(model.info, asked))

    # A batch is alike in its negative, so that the first one's scale is all's.
    negative = None
    if (led_away := asked[0].negative) is not None:
        away = [_known(one.negative.tokens, one.negative.caption) for one in asked if one.negative]
        negative = Negative(generator.context(away), led_away.scale)

    # An inversion draws backwards, which costs as much as drawing: only where it is asked for.
    begun = None
    if start is not None:
        begun = start.of(
            seeds,
            model.config.network.sample_shape,
            model.device,
            inverted(model, asked, settings, start) if start.request.invert else None,
        )
    steering = model.steering(settings, negative, begun)
    return generator.sample_space(context, seeds, settings, on_step, steering)


@torch.no_grad()
def inverted(
    model: Model, asked: Sequence[Conditioning], settings: SampleSettings, start: OpenedStart
) -> Tensor:
    """Return the noise [B, ...] that DDIM draws the start's picture from under its own neighbors.

    Without guidance, which makes the error larger; nothing but neighbors is known of the picture.
    """
    context = model.generator.context([_known(one.inversion, None) for one in asked])
    assert start.x0 is not None
    x0 = start.x0.expand(len(asked), *start.x0.shape[1:])
    return model.generator.inverted(context, x0, settings)


def known_of(info: ModelInfo, asked: Sequence[Conditioning]) -> list[Known]:
    """Return what is known of pictures: their tokens, captions and classes, where the model reads
    them."""
    classes = {name: number for number, name in enumerate(info.known_classes)}
    return [
        _known(
            one.tokens,
            one.query.label if one.query.kind == "text" and info.reads_text else None,
            classes.get(one.query.label) if one.query.kind == "class" else None,
        )
        for one in asked
    ]


def _known(tokens: Tokens | None, caption: str | None, label: int | None = None) -> Known:
    if tokens is None:
        return Known(text=caption, label=label)
    # Weights that are all 1 are left out: then the network computes without a mask.
    weighted = bool((tokens.weights != 1).any())
    return Known(
        neighbors=torch.from_numpy(tokens.values),
        text=caption,
        label=label,
        weights=torch.from_numpy(tokens.weights) if weighted else None,
    )


def _check_alike(asked: Sequence[Conditioning]) -> None:
    lengths = {0 if one.tokens is None else len(one.tokens.values) for one in asked}
    scales = {one.negative and one.negative.scale for one in asked}
    led_away = {one.negative is not None for one in asked}
    if len(lengths) > 1 or len(scales) > 1 or len(led_away) > 1:
        raise ValueError(
            "pictures of one batch have as many tokens each, and negatives of one scale: draw "
            "them in batches of their own"
        )
