"""Guidance: away from an unconditional prediction, or along a classifier's gradient.

References: [F] Ho and Salimans 2022 (classifier-free), [D] Dhariwal and Nichol 2021 (classifier),
    [A] Karras et al. 2024 (autoguidance), [B] Brooks et al. 2023 (a scale per source).

Two conventions of the classifier-free strength are in use. Papers write (1 + w) e_c - w e_u; code,
and this project's `guidance_scale` s, writes e_u + s (e_c - e_u). They are the same with s = 1 + w.
s = 1 is no guidance, s = 0 is unconditional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        if same_shapes(context, other):
            both = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), context.concatenated(other))
            conditional, unconditional = both.chunk(2)
        else:
            conditional, unconditional = predict(x_t, t, context), predict(x_t, t, other)
        return _combined_values(conditional, unconditional, guidance_scale, x_t)

    return predict_guided


def led(predict: Predictor, weaker: Predictor, guidance_scale: float) -> Predictor:
    """Return a predictor that is led away from a weaker network in the same context. [A] eq. 3.

    e_w + s (e - e_w): what the weaker network does worse is corrected further. It needs no null
    context, so it leads an unconditional model too.

    Args:
        predict: the network.
        weaker: an earlier or smaller one of the same training, of the same prediction type.
        guidance_scale: s; 1 returns `predict` itself.
    """
    if guidance_scale == 1:
        return predict

    def predict_led(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        strong, weak = predict(x_t, t, context), weaker(x_t, t, context)
        return _combined_values(strong, weak, guidance_scale, x_t)

    return predict_led


def guided_by_source(
    predict: Predictor, scales: Mapping[str, float], guidance_scale: float = 1.0
) -> Predictor:
    """Return a predictor with a guidance scale of its own for each source. [B] eq. 3.

    e(none) + s_1 (e(A) - e(none)) + s_2 (e(A, B) - e(A)) + ..., in the order of the context's
    sources. Equal scales are classifier-free guidance with that scale. All branches whose weight is
    not 0 run as one batch.

    Args:
        predict: the network.
        scales: s by source.
        guidance_scale: of the sources that `scales` does not name.

    Raises:
        ValueError: when called, if a name is no source of the context.
    """

    def predict_guided(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        sources = context.sources
        if unknown := [name for name in scales if name not in sources]:
            raise ValueError(
                f"a guidance scale for {unknown[0]}, but the sources are: "
                f"{', '.join(sources) or 'none'}"
            )
        chain = [scales.get(name, guidance_scale) for name in sources]
        # Branch i knows the first i sources: its weight is what its two neighbors in the chain
        # leave of it, and 0 between equal scales.
        weights = [
            before - after for before, after in zip([1.0, *chain], [*chain, 0.0], strict=True)
        ]
        branches = [
            (weight, context.null(sources[known:]) if known < len(sources) else context)
            for known, weight in enumerate(weights)
            if weight != 0
        ]
        (_, stacked), *others = branches
        for _, branch in others:
            stacked = stacked.concatenated(branch)
        count = len(branches)
        predictions = predict(torch.cat([x_t] * count), torch.cat([t] * count), stacked)

        values, channels = predictions[:, : x_t.shape[1]], x_t.shape[1]
        parts = zip(branches, values.chunk(count), strict=True)
        mixed = torch.stack([weight * part for (weight, _), part in parts]).sum(0)
        # The last branch knows everything: the variance of a network that learns it is that one's.
        return torch.cat([mixed, predictions.chunk(count)[-1][:, channels:]], dim=1)

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
        channels, learned, terms = x_t.shape[1], None, []
        for scale, branch in pairs:
            if scale != 0:
                prediction = predict(x_t, t, branch)
                terms.append(scale * prediction[:, :channels])
                learned = prediction[:, channels:] if branch is context else learned
        values = torch.stack(terms).sum(0)
        # A learned variance is the context's own.
        return values if learned is None else torch.cat([values, learned], dim=1)

    return predict_guided


@dataclass(frozen=True, eq=False)
class Guidance:
    """How a network is led: by a scale, and away from what.

    Attributes:
        scale: s of e_other + s (e - e_other); 1: no guidance.
        interval: log-SNRs between which guidance acts; None: everywhere.
        negative: the context to be led away from; None: the null context.
        negative_scale: of the negative, see `guided_away`; None: it takes the null's place.
        by_source: scales by source in place of the one; see `guided_by_source`.
        weaker: a network to be led away from in the same context, in place of the null context.

    Raises:
        ValueError: two of the last three are given.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    negative: Context | None = None
    negative_scale: float | None = None
    by_source: Mapping[str, float] | None = None
    weaker: Predictor | None = None

    def __post_init__(self) -> None:
        """Check that there is one thing to be led away from."""
        given = {
            "a negative context": self.negative,
            "scales by source": self.by_source,
            "a weaker network": self.weaker,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} do not go together: give one of them")

    def of(self, predict: Predictor, schedule: NoiseSchedule) -> Predictor:
        """Return the guided predictor of a network."""
        if self.weaker is not None:
            leading = led(predict, self.weaker, self.scale)
        elif self.by_source is not None:
            leading = guided_by_source(predict, self.by_source, self.scale)
        elif self.negative is not None:
            leading = guided_away(predict, self.scale, self.negative, self.negative_scale)
        else:
            leading = guided(predict, self.scale)
        # Without guidance there is nothing to switch off; a comparison per step is saved.
        if self.interval is None or leading is predict:
            return leading
        return guided_in_interval(predict, leading, schedule, self.interval)


def _combined_values(
    conditional: Tensor, unconditional: Tensor, guidance_scale: float, x_t: Tensor
) -> Tensor:
    """Return `combine` of predictions of x_t; a learned variance stays that of the first."""
    channels = x_t.shape[1]
    if conditional.shape[1] == channels:
        return combine(conditional, unconditional, guidance_scale)
    values = combine(conditional[:, :channels], unconditional[:, :channels], guidance_scale)
    return torch.cat([values, conditional[:, channels:]], dim=1)


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


def same_shapes(first: Context, second: Context) -> bool:
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
