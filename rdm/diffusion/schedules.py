"""Noise schedules, and the subsets of their timesteps that a sampler visits.

Array index t = 0 .. T-1 stands for the papers' t = 1 .. T. `ab` is alpha-bar, the cumulative
product of 1 - beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config

ScheduleKind = Literal["linear", "sqrt_linear", "quadratic", "cosine", "sigmoid"]
Spacing = Literal["leading", "linspace"]

# Nichol and Dhariwal 2021, below eq. 17: sqrt(beta_1) is just under a pixel bin.
_COSINE_OFFSET = 0.008
_COSINE_MAX_BETA = 0.999  # the same, to prevent a singularity at t = T
_SIGMOID_RANGE = 6.0


class ScheduleConfig(Config):
    """Settings of a schedule: the noise that each of `num_timesteps` steps adds.

    `sqrt_linear` is linear in the square root of beta: what latent diffusion calls "linear",
    diffusers "scaled_linear" and DDPM's own code "quad". `quadratic` is another name for it.
    """

    kind: ScheduleKind = "sqrt_linear"
    num_timesteps: int = Field(
        default=1000, ge=2, description="number of noise levels T that the model is trained on"
    )
    beta_start: float = Field(
        default=0.0015, gt=0, lt=1, description="beta of the first step; cosine does not use it"
    )
    beta_end: float = Field(
        default=0.0195, gt=0, lt=1, description="beta of the last step; cosine does not use it"
    )

    @model_validator(mode="after")
    def _betas_in_order(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        return self

    def build(self) -> NoiseSchedule:
        """Return the schedule's tensors, float64 on the CPU."""
        return NoiseSchedule.from_betas(_betas(self))


class TimestepConfig(Config):
    """The distribution of the noise levels that training draws.

    `log_snr_normal` spends the draws where small latents have something to learn: under a schedule
    made for larger ones, two fifths of uniform draws are nearly pure noise (logit-normal draws:
    Esser et al. 2024, section 3.1).
    """

    kind: Literal["uniform", "log_snr_normal"] = "uniform"
    mean: float = Field(
        default=0.4, description="of the log signal-to-noise ratio ln(ab / (1 - ab))"
    )
    std: float = Field(default=2.0, gt=0, description="of the log signal-to-noise ratio")
    uniform_share: float = Field(
        default=0.1, ge=0, le=1, description="share of draws that are uniform all the same"
    )

    def probabilities(self, schedule: NoiseSchedule) -> Tensor | None:
        """Return the probabilities of the timesteps, float64 [T] with sum 1; None: all alike."""
        if self.kind == "uniform":
            return None

        # The normal distribution's mass of each timestep, between the middles of neighboring
        # levels.
        log_snr = torch.logit(schedule.alphas_cumprod)  # falls with t
        middles = (log_snr[1:] + log_snr[:-1]) / 2
        # The ends 1 and 0 give the outer timesteps the tails, so that the masses sum to 1.
        below = torch.special.ndtr((middles - self.mean) / self.std)
        ends = torch.cat([below.new_ones(1), below, below.new_zeros(1)])
        normal = ends[:-1] - ends[1:]

        return (1 - self.uniform_share) * normal + self.uniform_share / schedule.num_timesteps


def ddpm_linear() -> ScheduleConfig:
    """Return DDPM's schedule (Ho et al. 2020, sec. 4): beta linear from 1e-4 to 0.02, T = 1000."""
    return ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02)


def rdm() -> ScheduleConfig:
    """Return ImageNet and FFHQ RDM's schedule: the root of beta linear, 0.0015 to 0.0195."""
    return ScheduleConfig(kind="sqrt_linear", beta_start=0.0015, beta_end=0.0195)


def rdm_768() -> ScheduleConfig:
    """Return the released 768-pixel RDM's schedule: root of beta linear, 0.0015 to 0.015."""
    return ScheduleConfig(kind="sqrt_linear", beta_start=0.0015, beta_end=0.015)


def stable_diffusion() -> ScheduleConfig:
    """Return the schedule of Stable Diffusion: beta from 0.00085 to 0.012, linear in its root."""
    return ScheduleConfig(kind="sqrt_linear", beta_start=0.00085, beta_end=0.012)


def cosine() -> ScheduleConfig:
    """Return the cosine schedule of improved DDPM (Nichol and Dhariwal 2021, eq. 17), T = 1000."""
    return ScheduleConfig(kind="cosine")


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The tensors of a schedule, each float64 [T].

    Attributes:
        betas: variance that step t adds, in (0, 1).
        alphas_cumprod: ab_t = prod_{s<=t} (1 - beta_s), falling.
        alphas_cumprod_prev: ab_{t-1}, with 1 before the first step.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """Return the schedule with the given betas [T].

        Raises:
            ValueError: a beta lies outside (0, 1).
        """
        # A product of a thousand factors near 1: in float32 its rounding errors would add up.
        betas = betas.to(torch.float64)
        if betas.dim() != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a vector of numbers strictly between 0 and 1")
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        return cls(
            betas, alphas_cumprod, torch.cat([torch.ones_like(betas[:1]), alphas_cumprod[:-1]])
        )

    @property
    def num_timesteps(self) -> int:
        """T, the number of noise levels."""
        return self.betas.shape[0]

    @cached_property
    def alpha_bars(self) -> tuple[float, ...]:
        """`alphas_cumprod` as Python numbers: one transfer from the device, not one per step."""
        return tuple(self.alphas_cumprod.tolist())

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """Return the schedule on another device; it stays float64."""
        return NoiseSchedule(
            *(v.to(device) for v in (self.betas, self.alphas_cumprod, self.alphas_cumprod_prev))
        )


def gather(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Return `values[t]` shaped to broadcast against `like`.

    Args:
        values: [T], a tensor of a schedule.
        t: int64 [B], each in 0 .. T-1.
        like: [B, ...].

    Returns:
        [B, 1, ...] on the device of `like`, in its dtype or float32 where that has less precision.
    """
    picked = values[t.to(values.device)].to(
        device=like.device, dtype=torch.promote_types(like.dtype, torch.float32)
    )
    return picked.view(-1, *([1] * (like.dim() - 1)))


def ddim_timesteps(num_train: int, num_steps: int) -> Tensor:
    """Return the timesteps of the latent-diffusion DDIM sampler: range(0, T, T // S) + 1, rising.

    There are ceil(T / (T // S)) of them: exactly S where S divides T, else more. Where T // S is 1
    the rule's last entry would be T, which does not exist, and is left out.

    Returns:
        int64 [about S], each in 1 .. T-1.

    Raises:
        ValueError: num_steps is not in 1 .. num_train.
    """
    _check_num_steps(num_train, num_steps, num_train)
    timesteps = torch.arange(0, num_train, num_train // num_steps) + 1
    return timesteps[timesteps < num_train]


def linspace_timesteps(num_train: int, num_steps: int) -> Tensor:
    """Return S timesteps that end at T-1, evenly spaced from 0, which is left out.

    Level 0 is where a DDIM trajectory ends, so the S steps lead from T-1 to 0: the grid for DDIM
    inversion.

    Returns:
        int64 [S], rising, each in 1 .. T-1.

    Raises:
        ValueError: num_steps is not in 1 .. num_train - 1.
    """
    # One step less than T, because level 0 is the target and not a step.
    _check_num_steps(num_train, num_steps, num_train - 1)
    return torch.linspace(0, num_train - 1, num_steps + 1, dtype=torch.float64).round().long()[1:]


def ancestral_timesteps(num_train: int, num_steps: int) -> Tensor:
    """Return S timesteps from 0 to T-1 for ancestral sampling (Nichol and Dhariwal 2021, sec. 4).

    Returns:
        int64 [S], rising; all of them for S = T.

    Raises:
        ValueError: num_steps is not in 2 .. num_train.
    """
    if num_steps < 2:
        raise ValueError(f"ancestral sampling takes at least 2 steps, not {num_steps}")
    _check_num_steps(num_train, num_steps, num_train)
    return torch.linspace(0, num_train - 1, num_steps, dtype=torch.float64).round().long()


def trailing_timesteps(num_train: int, num_steps: int) -> Tensor:
    """Return S timesteps that end at T-1, at distances of T / S (Lin et al. 2024, table 2).

    Returns:
        int64 [S], rising; all of them for S = T.

    Raises:
        ValueError: num_steps is not in 1 .. num_train.
    """
    _check_num_steps(num_train, num_steps, num_train)
    places = torch.arange(num_steps, dtype=torch.float64)
    return (num_train - places * num_train / num_steps).round().long().flip(0) - 1


def karras_timesteps(schedule: NoiseSchedule, num_steps: int, rho: float = 7.0) -> Tensor:
    """Return the S timesteps whose noise levels are nearest to those of Karras et al. 2022, eq. 5.

    sigma = sqrt((1 - ab) / ab) falls so that its root of order rho does so evenly. Networks know
    whole timesteps alone, so each level is that of a timestep, and none is taken twice.

    Args:
        schedule: its noisiest and its cleanest level are the ends.
        num_steps: S.
        rho: more of it spends more of the steps where there is little noise.

    Returns:
        int64 [S], rising, from 0 to T-1; T-1 alone for S = 1.

    Raises:
        ValueError: num_steps is not in 1 .. T.
    """
    count = schedule.num_timesteps
    _check_num_steps(count, num_steps, count)
    if num_steps == 1:
        return torch.tensor([count - 1])
    levels = schedule.alphas_cumprod.cpu()
    log_sigmas = -0.5 * torch.logit(levels)
    low, high = (log_sigmas[[0, -1]] / rho).exp().tolist()
    wanted = rho * torch.linspace(low, high, num_steps, dtype=torch.float64).log()
    nearest = (wanted[:, None] - log_sigmas[None]).abs().argmin(dim=1)

    # Where levels are closer than timesteps, each takes the next one that is free.
    places = torch.arange(num_steps)
    rising = torch.cummax(nearest - places, dim=0).values + places
    return torch.minimum(rising, count - num_steps + places)


def _check_num_steps(num_train: int, num_steps: int, most: int) -> None:
    if not 1 <= num_steps <= most:
        raise ValueError(
            f"num_steps must lie in 1 .. {most} for {num_train} training timesteps, not {num_steps}"
        )


def _betas(config: ScheduleConfig) -> Tensor:
    """Return the betas float64 [T] of a configuration."""
    start, end, count = config.beta_start, config.beta_end, config.num_timesteps
    if config.kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if config.kind in ("sqrt_linear", "quadratic"):
        return torch.linspace(math.sqrt(start), math.sqrt(end), count, dtype=torch.float64) ** 2

    if config.kind == "sigmoid":
        ramp = torch.linspace(-_SIGMOID_RANGE, _SIGMOID_RANGE, count, dtype=torch.float64)
        return start + (end - start) * torch.sigmoid(ramp)

    # Nichol and Dhariwal 2021, eq. 17: ab_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) * pi/2)
    progress = torch.arange(count + 1, dtype=torch.float64) / count
    f = torch.cos((progress + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=_COSINE_MAX_BETA)
