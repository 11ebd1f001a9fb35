"""Guidance: away from an unconditional prediction, or along a classifier's gradient.

References: [F] Ho and Salimans 2022 (classifier-free), [D] Dhariwal and Nichol 2021 (classifier).

Two conventions of the classifier-free strength are in use. Papers write (1 + w) e_c - w e_u; code,
and this project's `guidance_scale` s, writes e_u + s (e_c - e_u). They are the same with s = 1 + w.
s = 1 is no guidance, s = 0 is unconditional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.gaussian import (
    PredictionType,
    Predictor,
    checked_prediction,
    eps_and_x0,
    prediction_from,
    x0_from_eps,
)
from rdm.diffusion.schedules import NoiseSchedule, gather


def scale_from_weight(weight: float) -> float:
    """Return this project's guidance scale s = 1 + w for the papers' weight w."""
    return 1.0 + weight


def weight_from_scale(guidance_scale: float) -> float:
    """Return the papers' weight w = s - 1 for this project's guidance scale s."""
    return guidance_scale - 1.0


def combine(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Return e_u + s (e_c - e_u): the code's form."""
    return unconditional + guidance_scale * (conditional - unconditional)


def combine_by_weight(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Return (1 + w) e_c - w e_u: [F] eq. 6."""
    return (1 + weight) * conditional - weight * unconditional


def guided(predict: Predictor, guidance_scale: float, negative: Context | None = None) -> Predictor:
    """Return a predictor with classifier-free guidance.

    eps, x_0 and v are affine in one another at a given x_t, so guiding any of them is the same.

    Args:
        predict: the network.
        guidance_scale: s. 1 returns `predict` itself: one evaluation, the same bits. 0 evaluates
            the other branch only.
        negative: the context to be guided away from, such as another set of neighbors with the same
            ports; None: the null context. Both branches run as one batch of 2 B, or one after the
            other where the contexts differ in shape.

    Raises:
        ValueError: when called, if `negative` does not have the ports of the context.
    """
    if guidance_scale == 1:
        return predict

    def predict_guided(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        other = context.null() if negative is None else negative
        # The weight of the other prediction is exactly 0: its evaluation would be thrown away.
        if guidance_scale == 0:
            return predict(x_t, t, other)

        # One batch where the shapes allow it: one pass fills a device better than two.
        if _same_shapes(context, other):
            both = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), context.concatenated(other))
            conditional, unconditional = both.chunk(2)
        else:
            conditional, unconditional = predict(x_t, t, context), predict(x_t, t, other)
        return combine(conditional, unconditional, guidance_scale)

    return predict_guided


def guided_away(
    predict: Predictor,
    guidance_scale: float,
    negative: Context,
    negative_scale: float | None = None,
) -> Predictor:
    """Return a predictor led to its context and away from another one, each with its scale.

    e = (1 - s + n) e_u + s e_c - n e_n. With n = s - 1 the null has no part: the negative is the
    unconditional branch of `guided`, two evaluations in place of three.

    Args:
        predict: the network.
        guidance_scale: s, of the context.
        negative: what is led away from, with the ports of the context.
        negative_scale: n >= 0, of the negative; None: s - 1.
    """
    away = weight_from_scale(guidance_scale) if negative_scale is None else negative_scale
    null_scale = 1 - guidance_scale + away
    if null_scale == 0:
        return guided(predict, guidance_scale, negative)

    def predict_guided(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        scales = (null_scale, guidance_scale, -away)
        pairs = zip(scales, (context.null(), context, negative), strict=True)
        terms = [scale * predict(x_t, t, branch) for scale, branch in pairs if scale != 0]
        return torch.stack(terms).sum(0)

    return predict_guided


def guided_in_interval(
    predict: Predictor,
    guided_predict: Predictor,
    schedule: NoiseSchedule,
    log_snr: tuple[float, float],
) -> Predictor:
    """Return a predictor that is guided only where log(ab / (1 - ab)) lies within `log_snr`.

    The interval is closed. Guidance harms where only noise is seen, and is wasted where all is
    decided (Kynkaanniemi et al. 2024).
    """
    low, high = log_snr

    def predict_in_interval(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        # Samples of one batch may be at different levels.
        level = torch.logit(schedule.alphas_cumprod.to(t.device)[t])
        inside = (level >= low) & (level <= high)

        # A sampler's batch is at one level, so it takes one of the two ends, with one evaluation.
        if bool(inside.all()):
            return guided_predict(x_t, t, context)
        plain = predict(x_t, t, context)
        if not bool(inside.any()):
            return plain
        return torch.where(
            inside.view(-1, *[1] * (x_t.dim() - 1)), guided_predict(x_t, t, context), plain
        )

    return predict_in_interval


def _same_shapes(first: Context, second: Context) -> bool:
    """Return whether two contexts can share a batch; neighbor sets of different k cannot.

    Raises:
        ValueError: they do not set the same ports.
    """
    first.require_same_ports(second)
    pairs = zip(first.parts, second.parts, strict=True)
    return all(one.values.shape == other.values.shape for one, other in pairs)


@dataclass(frozen=True)
class ClassifierGuidance:
    """A classifier of noisy samples, and its strength.

    Attributes:
        log_prob: (x_t [B, ...], t int64 [B]) -> log p(y | x_t) [B], differentiable in x_t. The
            classifier must have been trained on noisy samples.
        scale: s >= 0; 0 leaves every bit as it was.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0

    def gradient(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return s grad_x log p(y | x_t), shaped like x_t."""
        with torch.enable_grad():
            # Samplers run without gradients; this one is of the classifier's input alone.
            x = x_t.detach().requires_grad_()
            # The sum's gradient is every sample's own gradient: samples do not see one another.
            (gradient,) = torch.autograd.grad(self.log_prob(x, t).sum(), x)
        return self.scale * gradient


def guided_mean(mean: Tensor, variance: Tensor | float, gradient: Tensor) -> Tensor:
    """Return the ancestral mean moved along the scaled gradient: mu + Sigma s g. [D] alg. 1."""
    return mean + variance * gradient


def guided_eps(eps: Tensor, alpha_bar: Tensor | float, gradient: Tensor) -> Tensor:
    """Return the noise prediction moved along the gradient: eps - sqrt(1 - ab) s g. [D] eq. 14."""
    return eps - (1 - alpha_bar) ** 0.5 * gradient


def classifier_guided(
    predict: Predictor,
    classifier: ClassifierGuidance,
    schedule: NoiseSchedule,
    prediction_type: PredictionType = "eps",
) -> Predictor:
    """Return a predictor with classifier guidance for DDIM. [D] algorithm 2.

    A scale of 0 returns `predict` itself.
    """
    if classifier.scale == 0:
        return predict

    def predict_guided(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        # The gradient moves eps; the answer is in the network's own terms again.
        alpha_bar = gather(schedule.alphas_cumprod, t, x_t)
        eps, _ = eps_and_x0(
            checked_prediction(predict, x_t, t, context), x_t, alpha_bar, prediction_type
        )
        eps = guided_eps(eps, alpha_bar, classifier.gradient(x_t, t))
        return prediction_from(eps, x0_from_eps(eps, x_t, alpha_bar), alpha_bar, prediction_type)

    return predict_guided
