"""From noise to samples: DDIM, its inversion, and ancestral DDPM.

References: [H] Ho et al. 2020 (DDPM), [I] Song et al. 2021 (DDIM), [D] Dhariwal and Nichol 2021,
    [N] Nichol and Dhariwal 2021.

A sample depends on its seed alone, not on the rest of the batch: all noise comes from
`seeded_noise`. (A network whose kernels depend on the batch size may still differ in the last
bits.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.gaussian import (
    AncestralVariance,
    PredictionType,
    Predictor,
    ancestral_variance,
    checked_prediction,
    eps_and_x0,
    eps_from_x0,
    posterior_mean,
    posterior_variance,
)
from rdm.diffusion.guidance import ClassifierGuidance, guided_mean
from rdm.diffusion.schedules import NoiseSchedule
from rdm.diffusion.thresholding import Thresholding


@dataclass(frozen=True)
class Step:
    """A sampler's report after each step.

    Attributes:
        index: 1 .. total.
        total: number of steps.
        t: timestep that the network has just seen.
        x0: [B, ...], the network's present guess of the result, for a preview.
    """

    index: int
    total: int
    t: int
    x0: Tensor


OnStep: TypeAlias = Callable[[Step], None]
Projection: TypeAlias = Callable[[Tensor, float], Tensor]
"""(x [B, ...], its alpha-bar) -> x: puts known content back after each step, as inpainting does."""


def seeded_noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    step: int = 0,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return standard normal noise [len(seeds), *shape]; row i depends on (seeds[i], shape, step).

    Row i is the same in every batch, on every device and for every number of workers. The generator
    is counter-based and keyed by the pair (seed, step), so different pairs never share a stream.

    Args:
        seeds: one per sample, each in 0 .. 2^64 - 1.
        shape: of one sample, without the batch.
        step: 0 for the initial noise; samplers use 1, 2, ... for the noise after each step.
        device: where the result goes; it is drawn on the CPU.
        dtype: of the result; it is drawn as float32.

    Raises:
        ValueError: there are no seeds, or one is out of range.
    """
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**64:
        raise ValueError(
            f"seeds must be one or more integers in 0 .. 2^64 - 1, not {list(seeds)[:4]}"
        )

    # On the CPU, whatever the device: other generators differ from device to device.
    keys = (np.array([seed, step], dtype=np.uint64) for seed in seeds)
    rows = [
        np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(shape), np.float32)
        for key in keys
    ]
    return torch.from_numpy(np.stack(rows)).to(device=device, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with everything that turns its predictions into eps and x_0.

    Attributes:
        predict: the network, guided or not.
        schedule: the one that it was trained on.
        context: conditioning of the whole batch.
        prediction_type: the kind of the network's predictions.
        thresholding: bounds the predicted x_0, for data of known range.
        learned_variance: the network returns twice the channels of its input; the second half are
            numbers in [-1, 1] that say where the variance of an ancestral step lies, [N] eq. 15.
    """

    predict: Predictor
    schedule: NoiseSchedule
    context: Context = field(default_factory=Context)
    prediction_type: PredictionType = "eps"
    thresholding: Thresholding | None = None
    learned_variance: bool = False

    def __call__(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Return (eps, x_0), each shaped like x_t [B, ...], in agreement, thresholded or not."""
        return self.with_variance(x_t, t)[:2]

    def with_variance(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (eps, x_0, place), each shaped like x_t.

        The place is that of the learned variance between beta-tilde, 0, and beta, 1, on the scale
        of logarithms; None of a network that does not learn it.
        """
        place: list[Tensor] = []

        def values(x: Tensor, times: Tensor, context: Context) -> Tensor:
            prediction = self.predict(x, times, context)
            if not self.learned_variance:
                return prediction
            value, variance = prediction.chunk(2, dim=1)
            place.append((variance.to(x.dtype) + 1) / 2)
            return value

        alpha_bar = self.schedule.alpha_bars[t]
        prediction = checked_prediction(values, x_t, _batch_of(t, x_t), self.context)
        # From here on every sampler sees eps and x_0, whichever of the three the network predicts.
        eps, x0 = eps_and_x0(prediction, x_t, alpha_bar, self.prediction_type)
        learned = place[0] if place else None

        # The thresholded x_0 implies another eps at this x_t.
        if self.thresholding is None:
            return eps, x0, learned
        x0 = self.thresholding(x0)
        return eps_from_x0(x0, x_t, alpha_bar), x0, learned


def ddim_step(
    eps: Tensor,
    x0: Tensor,
    alpha_bar: float,
    alpha_bar_prev: float,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Return x at level `alpha_bar_prev` from the prediction at level `alpha_bar`. [I] eq. 12.

    Args:
        eps: predicted noise [B, ...].
        x0: predicted x_0 [B, ...].
        alpha_bar: level that was predicted at.
        alpha_bar_prev: level to go to; below `alpha_bar` it is a step of the inversion.
        eta: in [0, 1]; 0 is deterministic, 1 has the variance of the ancestral sampler's
            beta-tilde.
        noise: standard normal [B, ...], needed where eta > 0.
    """
    # sigma^2 of [I] eq. 16; the rest of the variance stays with the predicted noise.
    variance = eta**2 * posterior_variance(alpha_bar, alpha_bar_prev) if eta else 0.0
    x_prev = alpha_bar_prev**0.5 * x0 + max(1 - alpha_bar_prev - variance, 0.0) ** 0.5 * eps
    return x_prev if noise is None else x_prev + variance**0.5 * noise


def ddpm_step(
    x_t: Tensor,
    x0: Tensor,
    alpha_bar: float,
    alpha_bar_prev: float,
    variance: AncestralVariance = "posterior",
    gradient: Tensor | None = None,
    noise: Tensor | None = None,
    place: Tensor | None = None,
) -> Tensor:
    """Draw x at level `alpha_bar_prev` from the ancestral model. [H] algorithm 2, eq. 7 and 11.

    Args:
        x_t: [B, ...] at level `alpha_bar`.
        x0: predicted x_0 [B, ...].
        alpha_bar: level of x_t.
        alpha_bar_prev: level to go to; 1 is clean.
        variance: sigma^2 = beta, best for normal data, or `posterior` (beta-tilde), best for a
            single point, or `learned`: between them.
        gradient: classifier guidance, scaled: moves the mean by sigma^2 times itself.
        noise: standard normal [B, ...]; None returns the mean, as the last step does.
        place: of the learned variance, see `Denoiser.with_variance`.
    """
    sigma2 = ancestral_variance(alpha_bar, alpha_bar_prev, variance, place)
    mean = posterior_mean(x0, x_t, alpha_bar, alpha_bar_prev)
    if gradient is not None:
        mean = guided_mean(mean, sigma2, gradient)
    return mean if noise is None else mean + sigma2**0.5 * noise


@torch.no_grad()
def ddim_sample(
    denoise: Denoiser,
    x_t: Tensor,
    timesteps: Tensor,
    *,
    eta: float = 0.0,
    seeds: Sequence[int] | None = None,
    on_step: OnStep | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return samples [B, ...] by DDIM, from x at the last of `timesteps` to level 0. [I] eq. 12.

    The last step goes to ab of timestep 0, not to 1, as the latent-diffusion sampler does.

    Args:
        denoise: the network.
        x_t: [B, ...], float32 or float64: noise, or data noised or inverted to `timesteps[-1]`.
        timesteps: int64, rising; the first few of a rule's list to start from a picture that is
            only partly noised.
        eta: in [0, 1], see `ddim_step`.
        seeds: one per sample; needed where eta > 0.
        on_step: is called after each step.
        project: is applied to x after each step.

    Raises:
        ValueError: eta is outside [0, 1], or it needs seeds and their number is not B.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0 .. 1, not {eta}")

    # Without noise the seeds do not matter: a caller that passes some need not match the batch.
    noise_seeds = checked_seeds(seeds, x_t) if eta > 0 else None

    # From the noisiest level down. Noise is added after each step, keyed by its number.
    levels = ddim_levels(timesteps, denoise.schedule)
    alpha_bars = denoise.schedule.alpha_bars
    for index, (t, t_prev) in enumerate(pairwise(reversed(levels)), start=1):
        # One evaluation of the network per level; the rest of a step is arithmetic on its answer.
        eps, x0 = denoise(x_t, t)
        noise = noise_like(x_t, noise_seeds, index)
        x_t = ddim_step(eps, x0, alpha_bars[t], alpha_bars[t_prev], eta, noise)

        if project is not None:
            x_t = project(x_t, alpha_bars[t_prev])
        if on_step is not None:
            on_step(Step(index, len(levels) - 1, t, x0))
    return x_t


@torch.no_grad()
def ddim_invert(
    denoise: Denoiser, x0: Tensor, timesteps: Tensor, *, on_step: OnStep | None = None
) -> Tensor:
    """Return latents [B, ...] at the last of `timesteps`, from which DDIM nearly gives x0 back.

    Each step assumes that eps is the same at the next level ([I] section 4.3, [D] appendix F), so
    the error of the round trip falls as 1 / number of steps.

    Args:
        denoise: the network; with the context that the samples belong to.
        x0: [B, ...] at level 0.
        timesteps: int64, rising: the ones that `ddim_sample` will visit.
        on_step: is called after each step.
    """
    # Upwards, by the same step as downwards.
    levels = ddim_levels(timesteps, denoise.schedule)
    alpha_bars = denoise.schedule.alpha_bars
    x_t = x0
    for index, (t, t_next) in enumerate(pairwise(levels), start=1):
        eps, guess = denoise(x_t, t)
        x_t = ddim_step(eps, guess, alpha_bars[t], alpha_bars[t_next])
        if on_step is not None:
            on_step(Step(index, len(levels) - 1, t, guess))
    return x_t


@torch.no_grad()
def ddpm_sample(
    denoise: Denoiser,
    x_t: Tensor,
    timesteps: Tensor,
    *,
    seeds: Sequence[int],
    variance: AncestralVariance = "posterior",
    classifier: ClassifierGuidance | None = None,
    on_step: OnStep | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return samples [B, ...] by ancestral sampling, from the last of `timesteps` to clean.

    [H] algorithm 2.

    Args:
        denoise: the network.
        x_t: [B, ...], float32 or float64 noise.
        timesteps: int64, rising, as `ancestral_timesteps` gives them.
        seeds: one per sample.
        variance: see `ddpm_step`.
        classifier: guidance of the mean. [D] algorithm 1.
        on_step: is called after each step.
        project: is applied to x after each step.

    Raises:
        ValueError: the number of seeds is not B, or the timesteps do not rise.
    """
    noise_seeds = checked_seeds(seeds, x_t)
    levels = checked_timesteps(timesteps, denoise.schedule)
    alpha_bars = denoise.schedule.alpha_bars

    # The last step goes to clean data, ab = 1, and adds no noise.
    for index, t in enumerate(reversed(levels), start=1):
        alpha_bar_prev = alpha_bars[levels[-index - 1]] if index < len(levels) else 1.0
        _, x0, place = denoise.with_variance(x_t, t)
        gradient = None if classifier is None else classifier.gradient(x_t, _batch_of(t, x_t))
        noise = noise_like(x_t, noise_seeds if index < len(levels) else None, index)
        x_t = ddpm_step(x_t, x0, alpha_bars[t], alpha_bar_prev, variance, gradient, noise, place)

        if project is not None:
            x_t = project(x_t, alpha_bar_prev)
        if on_step is not None:
            on_step(Step(index, len(levels), t, x0))
    return x_t


def _batch_of(t: int, x: Tensor) -> Tensor:
    # Networks take a time per sample, although all samples of a sampler's batch are at one level.
    return torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)


def ddim_levels(timesteps: Tensor, schedule: NoiseSchedule) -> list[int]:
    """Return the timesteps with level 0 in front, where DDIM trajectories end."""
    steps = checked_timesteps(timesteps, schedule)
    return steps if steps[0] == 0 else [0, *steps]


def checked_timesteps(timesteps: Tensor, schedule: NoiseSchedule) -> list[int]:
    """Return the timesteps as numbers.

    Raises:
        ValueError: they do not rise within the schedule.
    """
    steps: list[int] = timesteps.tolist()
    rising = all(low < high for low, high in pairwise(steps))
    if not steps or not rising or steps[0] < 0 or steps[-1] >= schedule.num_timesteps:
        last = schedule.num_timesteps - 1
        raise ValueError(f"timesteps must rise within 0 .. {last}, not {steps[:4]} .. {steps[-1:]}")
    return steps


def checked_seeds(seeds: Sequence[int] | None, x: Tensor) -> Sequence[int]:
    """Return the seeds of a batch x.

    Raises:
        ValueError: there is not one for each sample.
    """
    if seeds is None or len(seeds) != x.shape[0]:
        given = "none" if seeds is None else str(len(seeds))
        raise ValueError(
            f"sampling with noise takes one seed for each of {x.shape[0]} samples; {given} given"
        )
    return seeds


def noise_like(x: Tensor, seeds: Sequence[int] | None, step: int) -> Tensor | None:
    """Return the noise of a step, shaped like x; None without seeds."""
    if seeds is None:
        return None
    # `step` counts from 1, so no step's noise is the initial noise, which has the key 0.
    return seeded_noise(seeds, x.shape[1:], step, device=x.device, dtype=x.dtype)
