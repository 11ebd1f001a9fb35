"""Exact noise predictors of known distributions, so that samplers are tested without a trained
network."""

import torch
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.gaussian import Predictor
from rdm.diffusion.schedules import NoiseSchedule, gather

MEAN, STD = 0.7, 0.3  # of the normal data
MODE, MODE_STD = 1.0, 0.25  # of the mixture: half at +1, half at -1


def normal_eps(
    x: Tensor, alpha_bar: Tensor | float, mean: Tensor | float = MEAN, std: float = STD
) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(mean, std^2)."""
    scale = (1 - alpha_bar) ** 0.5 / (alpha_bar * std**2 + 1 - alpha_bar)
    return scale * (x - alpha_bar**0.5 * mean)


def log_prob_positive(x: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """log p(positive mode | x_t), elementwise."""
    return torch.nn.functional.logsigmoid(
        2 * alpha_bar**0.5 * MODE * x / (alpha_bar * MODE_STD**2 + 1 - alpha_bar)
    )


def mixture_eps(x: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """E[eps | x_t] for the mixture."""
    positive = log_prob_positive(x, alpha_bar).exp()
    return positive * mode_eps(x, alpha_bar) + (1 - positive) * mode_eps(x, alpha_bar, -1)


def mode_eps(x: Tensor, alpha_bar: Tensor | float, sign: int = 1) -> Tensor:
    """E[eps | x_t] for one mode of the mixture."""
    return normal_eps(x, alpha_bar, sign * MODE, MODE_STD)


def normal_predictor(schedule: NoiseSchedule) -> Predictor:
    return lambda x, t, context: normal_eps(x, gather(schedule.alphas_cumprod, t, x))


def mixture_predictor(schedule: NoiseSchedule) -> Predictor:
    return lambda x, t, context: mixture_eps(x, gather(schedule.alphas_cumprod, t, x))


def conditional_predictor(schedule: NoiseSchedule) -> Predictor:
    """The mixture where the context's vector is 0, its positive mode where it is 1."""

    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        alpha_bar = gather(schedule.alphas_cumprod, t, x)
        assert context.vector is not None
        return torch.where(context.vector > 0, mode_eps(x, alpha_bar), mixture_eps(x, alpha_bar))

    return predict


def exact_normal_moments(
    schedule: NoiseSchedule, levels: list[int], eta: float, mean: float = MEAN, std: float = STD
) -> tuple[float, float]:
    """Mean and std that DDIM with the exact predictor gives to N(0, 1) noise: each step is affine
    in x."""
    m, variance = 0.0, 1.0
    for t, t_prev in zip(reversed(levels), reversed([0, *levels[:-1]]), strict=True):
        ab, prev = schedule.alpha_bars[t], schedule.alpha_bars[t_prev]
        sigma2 = eta**2 * (1 - prev) / (1 - ab) * (1 - ab / prev)
        slope = (1 - ab) ** 0.5 / (ab * std**2 + 1 - ab)
        on_eps = (1 - prev - sigma2) ** 0.5 - (1 - ab) ** 0.5 * (prev / ab) ** 0.5
        factor = (prev / ab) ** 0.5 + on_eps * slope
        m = factor * m - on_eps * slope * ab**0.5 * mean
        variance = factor**2 * variance + sigma2
    return m, variance**0.5
