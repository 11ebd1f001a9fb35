"""The Gaussian process: forward noising, posterior, three prediction types, the training loss.

References: [H] Ho et al. 2020 (DDPM), [S] Salimans and Ho 2022 (v-prediction), [M] Hang et al. 2023
    (min-SNR).

Functions that take `alpha_bar` accept a number or a tensor that broadcasts, so the loss (one level
per sample) and the samplers (one level per step) share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.schedules import NoiseSchedule, gather

Predictor: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]
"""A denoiser: (x_t [B, ...], t int64 [B], context) -> prediction shaped like x_t."""

PredictionType = Literal["eps", "v", "x0"]
Weighting = Literal["plain", "min_snr"]
FixedVariance = Literal["beta", "posterior"]
AncestralVariance = Literal["beta", "posterior", "learned"]
Level = TypeVar("Level", Tensor, float)
MIN_SNR_GAMMA = 5.0  # [M] section 3.4


def q_sample(schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t drawn from q(x_t | x_0): sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise. [H] eq. 4.

    Args:
        schedule: T noise levels.
        x0: [B, ...].
        t: int64 [B], each in 0 .. T-1.
        noise: standard normal, shaped like x0.
    """
    alpha_bar = gather(schedule.alphas_cumprod, t, x0)
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


def q_step(schedule: NoiseSchedule, x_prev: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t of q(x_t | x_{t-1}): sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise. [H] eq. 2."""
    beta = gather(schedule.betas, t, x_prev)
    return (1 - beta) ** 0.5 * x_prev + beta**0.5 * noise


def q_posterior(
    schedule: NoiseSchedule, x0: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean [B, ...] and variance [B, 1, ...] of q(x_{t-1} | x_t, x_0). [H] eq. 6 and 7."""
    alpha_bar = gather(schedule.alphas_cumprod, t, x_t)
    alpha_bar_prev = gather(schedule.alphas_cumprod_prev, t, x_t)
    mean = posterior_mean(x0, x_t, alpha_bar, alpha_bar_prev)
    return mean, posterior_variance(alpha_bar, alpha_bar_prev)


def posterior_mean(
    x0: Tensor, x_t: Tensor, alpha_bar: Tensor | float, alpha_bar_prev: Tensor | float
) -> Tensor:
    """Return the mean of q(x_prev | x_t, x_0) between any two levels.

    [H] eq. 7 with alpha = ab / ab_prev.
    """
    alpha = alpha_bar / alpha_bar_prev
    of_x0, of_x_t = alpha_bar_prev**0.5 * (1 - alpha), alpha**0.5 * (1 - alpha_bar_prev)
    return (of_x0 * x0 + of_x_t * x_t) / (1 - alpha_bar)


def posterior_variance(alpha_bar: Level, alpha_bar_prev: Level) -> Level:
    """Return beta-tilde, the variance of q(x_prev | x_t, x_0) between any two levels. [H] eq. 7."""
    return (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)


def ancestral_variance(
    alpha_bar: float,
    alpha_bar_prev: float,
    variance: AncestralVariance,
    place: Tensor | None = None,
) -> Tensor | float:
    """Return sigma^2 of an ancestral step between any two levels.

    Args:
        alpha_bar: level to leave.
        alpha_bar_prev: level to go to.
        variance: beta; beta-tilde of the posterior; or what a network has learned.
        place: of the learned variance between beta-tilde, 0, and beta, 1, on the scale of
            logarithms: Nichol and Dhariwal 2021, eq. 15.

    Raises:
        ValueError: the variance is to be the learned one, and there is none.
    """
    # Of the step between these two levels: where timesteps are skipped, more than the schedule's.
    beta = 1 - alpha_bar / alpha_bar_prev
    if variance == "beta":
        return beta
    posterior = posterior_variance(alpha_bar, alpha_bar_prev)
    if variance == "posterior":
        return posterior
    if place is None:
        raise ValueError("the network has not learned a variance: take posterior or beta")
    # The step to clean data has a posterior without spread, whose logarithm is infinite.
    if posterior <= 0:
        return posterior
    return (place * math.log(beta) + (1 - place) * math.log(posterior)).exp()


def x0_from_eps(eps: Tensor, x_t: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Return the x_0 that eps and x_t imply. [H] eq. 15."""
    return (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def eps_from_x0(x0: Tensor, x_t: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Return the eps that x_0 and x_t imply: [H] eq. 15 solved for eps."""
    return (x_t - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5


def v_from_eps_x0(eps: Tensor, x0: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Return v = sqrt(ab) eps - sqrt(1 - ab) x_0. [S] section 4."""
    return alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0


def eps_and_x0(
    prediction: Tensor, x_t: Tensor, alpha_bar: Tensor | float, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """Return (eps, x_0) from a network's prediction of either, or of v.

    Args:
        prediction: [B, ...], of the kind that `prediction_type` names.
        x_t: [B, ...].
        alpha_bar: level of x_t.
        prediction_type: `eps`, `v` or `x0`.
    """
    if prediction_type == "eps":
        return prediction, x0_from_eps(prediction, x_t, alpha_bar)
    if prediction_type == "x0":
        return eps_from_x0(prediction, x_t, alpha_bar), prediction

    # [S] appendix D: a rotation of (x_t, v), which divides by nothing at either end.
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return noise * x_t + signal * prediction, signal * x_t - noise * prediction


def prediction_from(
    eps: Tensor, x0: Tensor, alpha_bar: Tensor | float, prediction_type: PredictionType
) -> Tensor:
    """Return the training target of a prediction type, from (eps, x_0)."""
    if prediction_type == "eps":
        return eps
    return x0 if prediction_type == "x0" else v_from_eps_x0(eps, x0, alpha_bar)


def loss_weights(
    schedule: NoiseSchedule,
    t: Tensor,
    prediction_type: PredictionType = "eps",
    weighting: Weighting = "plain",
    gamma: float = MIN_SNR_GAMMA,
) -> Tensor:
    """Return the weight of each sample's squared error, float32 [B].

    `plain` is 1: for eps-prediction [H] eq. 14, L_simple. `min_snr` is [M] section 3.4: min(SNR,
    gamma) on the error of x_0, which is min(SNR, gamma) / SNR on that of eps and min(SNR, gamma) /
    (SNR + 1) on that of v.
    """
    if weighting == "plain":
        return torch.ones(t.shape[0], device=t.device)

    # At a given x_t the error of x_0 is that of eps or v times a factor, which the weight contains.
    alpha_bar = schedule.alphas_cumprod[t.to(schedule.alphas_cumprod.device)]
    snr = alpha_bar / (1 - alpha_bar)
    per_x0 = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[prediction_type]
    return (snr.clamp(max=gamma) / per_x0).to(device=t.device, dtype=torch.float32)


def diffusion_loss(
    predict: Predictor,
    x0: Tensor,
    context: Context,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    prediction_type: PredictionType = "eps",
    weighting: Weighting = "plain",
) -> Tensor:
    """Return each sample's training loss at a timestep drawn uniformly. [H] algorithm 1.

    Args:
        predict: the network.
        x0: float [B, ...], clean samples.
        context: conditioning, already dropped out where guidance is trained.
        schedule: T noise levels.
        generator: draws the timesteps, then the noise, on its own device.
        prediction_type: the kind of the network's predictions.
        weighting: see `loss_weights`.

    Returns:
        float32 [B], the mean squared error over a sample's elements times its weight.

    Raises:
        ValueError: the prediction is not shaped like x0.
    """
    t, noise = draw_noise(x0, schedule, generator)
    return loss_at(predict, x0, t, noise, context, schedule, prediction_type, weighting)


def draw_noise(
    x0: Tensor,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    probabilities: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return timesteps int64 [B], then standard normal noise shaped like x0. [H] algorithm 1.

    Args:
        x0: clean samples.
        schedule: how many timesteps there are.
        generator: draws both.
        probabilities: [T], of each timestep; None: uniform.
    """
    device, count = generator.device, x0.shape[0]
    # Timesteps before the noise, so that they do not depend on the shape of the samples.
    if probabilities is None:
        shape = (count,)
        t = torch.randint(schedule.num_timesteps, shape, generator=generator, device=device)
    else:
        weights = probabilities.to(device)
        t = torch.multinomial(weights, count, replacement=True, generator=generator)

    noise = torch.randn(x0.shape, generator=generator, device=device).to(x0.device)
    return t.to(x0.device), noise


def loss_at(
    predict: Predictor,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    context: Context,
    schedule: NoiseSchedule,
    prediction_type: PredictionType = "eps",
    weighting: Weighting = "plain",
) -> Tensor:
    """Return each sample's loss, float32 [B], at given timesteps t, int64 [B], and noise [B, ...].

    The other arguments, and the errors, are those of `diffusion_loss`.
    """
    x_t = q_sample(schedule, x0, t, noise)
    target = prediction_from(noise, x0, gather(schedule.alphas_cumprod, t, x0), prediction_type)
    prediction = checked_prediction(predict, x_t, t, context)
    # The mean over elements, not their sum, so that losses of different resolutions compare.
    errors = (prediction - target).square().flatten(1).mean(dim=1)
    return errors * loss_weights(schedule, t, prediction_type, weighting)


def checked_prediction(predict: Predictor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
    """Return the prediction in x_t's dtype.

    Raises:
        ValueError: the prediction is not shaped like x_t; broadcasting would hide it.
    """
    prediction = predict(x_t, t, context)
    if prediction.shape != x_t.shape:
        raise ValueError(
            f"the network returned {list(prediction.shape)} for an input of {list(x_t.shape)}"
        )
    return prediction.to(x_t.dtype)


def prior_kl(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """Return KL(q(x_T | x_0) || N(0, I)) per dimension, nats, float64 [B]. [H] eq. 5, L_T."""
    alpha_bar = schedule.alpha_bars[-1]
    # log(1 - ab), by a function that keeps the digits of a small ab.
    log_variance = torch.log1p(torch.tensor(-alpha_bar, dtype=torch.float64)).item()
    terms = alpha_bar * x0.double().square() - alpha_bar - log_variance
    return 0.5 * terms.flatten(1).mean(dim=1)
