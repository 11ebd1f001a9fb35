"""The variational bound of Gaussian diffusion on the negative log-likelihood, term by term.

References: [H] Ho et al. 2020 (DDPM), [N] Nichol and Dhariwal 2021. All terms are in nats per
    dimension, float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rdm.diffusion.gaussian import (
    FixedVariance,
    posterior_mean,
    posterior_variance,
    prior_kl,
    q_sample,
)
from rdm.diffusion.samplers import Denoiser

_HALF_BIN = 1 / 255  # of a pixel's 256 values on [-1, 1]


@dataclass(frozen=True)
class Bound:
    """The terms of [H] eq. 5 for each sample.

    Attributes:
        prior: L_T, float64 [B].
        steps: L_{t-1} of array indices 1 .. T-1, float64 [T - 1, B].
        decoder: L_0, float64 [B].
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """Nats per dimension, float64 [B]: at least the negative log-likelihood, in expectation."""
        return self.prior + self.steps.sum(0) + self.decoder


@torch.no_grad()
def variational_bound(
    denoise: Denoiser,
    x0: Tensor,
    noise: Callable[[int], Tensor],
    variance: FixedVariance = "posterior",
    *,
    discrete: bool = False,
) -> Bound:
    """Return the bound of ancestral sampling in all T steps.

    Args:
        denoise: the network.
        x0: [B, ...]; where `discrete`, pixels of 8 bits on [-1, 1].
        noise: standard normal noise shaped like x0 for each timestep.
        variance: of the sampler, see `ddpm_step`. The posterior's vanishes at the last step, where
            that of the step before takes its place ([N] below eq. 15).
        discrete: the decoder gives probabilities of 256 values ([H] eq. 13) instead of a density.
    """
    # One pass over all T levels, each with its own noise.
    levels = denoise.schedule.alpha_bars
    steps: list[Tensor] = []
    decoder = torch.zeros(len(x0), dtype=torch.float64)
    for t in range(len(levels)):
        times = torch.full((len(x0),), t, dtype=torch.int64, device=x0.device)
        x_t = q_sample(denoise.schedule, x0, times, noise(t))
        _, guess = denoise(x_t, t)
        model_variance = _model_variance(levels, t, variance)

        # The last step to clean data: L_0 is a likelihood, not a divergence.
        if t == 0:
            errors = (x0 - guess).double()
            if discrete:
                term = _log_bins(x0, errors, model_variance)
            else:
                term = _log_density(errors, model_variance)
            decoder = -term.flatten(1).mean(1)
            continue

        # KL between the true posterior and the model's Gaussian, of the means and variances.
        means = [posterior_mean(sample, x_t, levels[t], levels[t - 1]) for sample in (x0, guess)]
        squares = (means[0] - means[1]).double().square().flatten(1).mean(1)
        true_variance = posterior_variance(levels[t], levels[t - 1])
        ratio = true_variance / model_variance
        steps.append(0.5 * (ratio - 1 - math.log(ratio) + squares / model_variance))

    return Bound(prior_kl(denoise.schedule, x0), torch.stack(steps), decoder)


def bits_per_dim(nats: Tensor, *, discrete: bool = False) -> Tensor:
    """Return nats per dimension as bits of 8-bit pixels; a density's unit has 127.5 values."""
    bits = nats / math.log(2)
    return bits if discrete else bits + math.log2(127.5)


def _model_variance(levels: tuple[float, ...], t: int, variance: FixedVariance) -> float:
    """Return the model's variance of step t."""
    if variance == "beta":
        return 1 - levels[t] / (levels[t - 1] if t else 1.0)
    # At t = 0 beta-tilde is 0, under which a guess with any error would be infinitely unlikely.
    return posterior_variance(levels[max(t, 1)], levels[max(t, 1) - 1])


def _log_density(errors: Tensor, variance: float) -> Tensor:
    return -0.5 * (math.log(2 * math.pi * variance) + errors.square() / variance)


def _log_bins(x0: Tensor, errors: Tensor, variance: float) -> Tensor:
    """Return the log-probability of each pixel's bin; the lowest and the highest bin are open."""
    scale = variance**0.5
    upper = torch.special.ndtr((errors + _HALF_BIN) / scale)
    lower = torch.special.ndtr((errors - _HALF_BIN) / scale)
    # Open ends make the probabilities of the 256 values sum to 1, see [H] eq. 13.
    lower = torch.where(x0 < -1 + _HALF_BIN, torch.zeros_like(lower), lower)
    upper = torch.where(x0 > 1 - _HALF_BIN, torch.ones_like(upper), upper)
    # Far from the mean both integrals round to one number, whose logarithm is infinite.
    return (upper - lower).clamp(min=1e-12).log()
