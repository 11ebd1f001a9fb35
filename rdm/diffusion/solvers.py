"""Solvers of the probability-flow equation: Euler, Heun, PLMS; DPM-Solver++ and UniPC by diffusers.

References: [K] Karras et al. 2022, [L] Liu et al. 2022 (PNDM), [P] Lu et al. 2022 (DPM-Solver++),
    [U] Zhao et al. 2023 (UniPC).

The first three are DDIM's deterministic step with another eps, so they are written with it: in the
precision of x, between any two timesteps. In all of them x has the scale of training, where
diffusers' Euler and Heun divide it by sqrt(ab) and lose digits to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from rdm.diffusion.samplers import (
    Denoiser,
    OnStep,
    Projection,
    Step,
    checked_seeds,
    checked_timesteps,
    ddim_levels,
    ddim_step,
    noise_like,
)

DiffusersSolver = Literal["dpm++2m", "dpm++2m-sde", "unipc"]

Move: TypeAlias = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""(x at timestep t, t, ab of the next level) -> (x there, the network's guess of x_0)."""

_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12))
_ADAMS_BASHFORTH_4 = (55 / 24, -59 / 24, 37 / 24, -9 / 24)  # [L] eq. 12


def euler_sample(
    denoise: Denoiser,
    x_t: Tensor,
    timesteps: Tensor,
    *,
    on_step: OnStep | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return samples [B, ...] by Euler's method in sigma, from the last of `timesteps` to clean.

    [K] algorithm 1 without its second half. It is DDIM with eta = 0 but for the last step, which
    goes to ab = 1 here.

    Args:
        denoise: the network.
        x_t: [B, ...], float32 or float64.
        timesteps: int64, rising.
        on_step: is called after each step.
        project: is applied to x after each step.

    Raises:
        ValueError: the timesteps do not rise within the schedule.
    """
    alpha_bars = denoise.schedule.alpha_bars

    def move(x: Tensor, t: int, target: float) -> tuple[Tensor, Tensor]:
        eps, x0 = denoise(x, t)
        return ddim_step(eps, x0, alpha_bars[t], target), x0

    levels = [*_falling(timesteps, denoise), None]
    return _walk(move, x_t, levels, alpha_bars, on_step, project)


def heun_sample(
    denoise: Denoiser,
    x_t: Tensor,
    timesteps: Tensor,
    *,
    on_step: OnStep | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return samples [B, ...] by Heun's method in sigma. [K] algorithm 1, without churn.

    Two evaluations of the network per step, but one in the last, to clean data. Arguments and
    errors are those of `euler_sample`.
    """
    alpha_bars = denoise.schedule.alpha_bars
    falling = _falling(timesteps, denoise)
    following = dict(zip(falling, falling[1:], strict=False))

    # Two evaluations a step, but for the last, which ends at clean pictures: nothing is left to
    # predict there.
    def move(x: Tensor, t: int, target: float) -> tuple[Tensor, Tensor]:
        eps, x0 = denoise(x, t)
        there = ddim_step(eps, x0, alpha_bars[t], target)
        if t not in following:
            return there, x0
        eps_there, _ = denoise(there, following[t])
        return _along((eps + eps_there) / 2, x, alpha_bars[t], target), x0

    return _walk(move, x_t, [*falling, None], alpha_bars, on_step, project)


def plms_sample(
    denoise: Denoiser,
    x_t: Tensor,
    timesteps: Tensor,
    *,
    on_step: OnStep | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return samples [B, ...] by PLMS, to the level of timestep 0. [L] eq. 12.

    Adams and Bashforth's extrapolation of eps from the last four steps; the first step is Heun's,
    with a second evaluation. Arguments and errors are those of `euler_sample`; the timesteps are at
    equal distances.
    """
    alpha_bars = denoise.schedule.alpha_bars
    falling = list(reversed(ddim_levels(timesteps, denoise.schedule)))
    history: list[Tensor] = []

    # The mean of the last four predictions, weighted as Adams and Bashforth do.
    def move(x: Tensor, t: int, target: float) -> tuple[Tensor, Tensor]:
        eps, x0 = denoise(x, t)
        history.insert(0, eps)
        del history[4:]
        weights = _ADAMS_BASHFORTH_4 if len(history) == 4 else _ADAMS_BASHFORTH[len(history) - 1]
        # One old value more than Heun's method needs: the second evaluation is not kept.
        if len(history) == 1:
            eps_there, _ = denoise(ddim_step(eps, x0, alpha_bars[t], target), falling[1])
            return _along((eps + eps_there) / 2, x, alpha_bars[t], target), x0
        mixed = sum(
            (weight * value for weight, value in zip(weights, history, strict=True)),
            start=torch.zeros_like(eps),
        )
        return _along(mixed, x, alpha_bars[t], target), x0

    return _walk(move, x_t, falling, alpha_bars, on_step, project)


@torch.no_grad()
def diffusers_sample(
    name: DiffusersSolver,
    denoise: Denoiser,
    x_t: Tensor,
    timesteps: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    on_step: OnStep | None = None,
    project: Projection | None = None,
) -> Tensor:
    """Return samples [B, ...] by a multistep solver of diffusers, to clean data; in float32 inside.

    Args:
        name: `dpm++2m` ([P] algorithm 2), its SDE, or `unipc` ([U], order 2 with its corrector).
        denoise: the network.
        x_t: [B, ...].
        timesteps: int64, rising.
        seeds: one per sample; the SDE needs them.
        on_step: is called after each step.
        project: is applied to x after each step.

    Raises:
        ValueError: the SDE has no seed for each sample, or the timesteps do not rise.
    """
    noise_seeds = checked_seeds(seeds, x_t) if name == "dpm++2m-sde" else None
    falling = _falling(timesteps, denoise)
    scheduler = _scheduler(name, denoise, falling)
    levels = [*(denoise.schedule.alpha_bars[t] for t in falling[1:]), 1.0]

    for index, (t, target) in enumerate(zip(falling, levels, strict=True), start=1):
        _, x0 = denoise(x_t, t)
        noise = noise_like(x_t, noise_seeds, index)
        given = {} if noise is None else {"variance_noise": noise}
        x_t = scheduler.step(x0, t, x_t, return_dict=False, **given)[0].to(x_t.dtype)

        if project is not None:
            x_t = project(x_t, target)
        if on_step is not None:
            on_step(Step(index, len(falling), t, x0))
    return x_t


def _scheduler(name: DiffusersSolver, denoise: Denoiser, falling: Sequence[int]) -> Any:
    """Return diffusers' scheduler at given timesteps, one that is told x_0."""
    # Loaded when asked for: it takes longer than a search does.
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    schedule = denoise.schedule
    scheduler: Any
    shared: dict[str, Any] = {
        "num_train_timesteps": schedule.num_timesteps,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": "sample",
        "solver_order": 2,
    }
    if name == "unipc":
        scheduler = UniPCMultistepScheduler(**shared)
    else:
        kind: Any = "sde-dpmsolver++" if name == "dpm++2m-sde" else "dpmsolver++"
        scheduler = DPMSolverMultistepScheduler(algorithm_type=kind, **shared)

    # Our timesteps, which not every scheduler of diffusers takes, and their levels to all digits,
    # which diffusers rounds before it multiplies a thousand of them.
    scheduler.set_timesteps(len(falling))
    levels = torch.tensor([schedule.alpha_bars[t] for t in falling], dtype=torch.float64)
    sigmas = torch.cat([((1 - levels) / levels).sqrt(), levels.new_zeros(1)])
    scheduler.timesteps = torch.tensor(falling)
    scheduler.sigmas = sigmas.float()
    return scheduler


@torch.no_grad()
def _walk(
    move: Move,
    x_t: Tensor,
    levels: Sequence[int | None],
    alpha_bars: Sequence[float],
    on_step: OnStep | None,
    project: Projection | None,
) -> Tensor:
    """Return x at the last of the levels, which fall; None is clean data."""
    for index, (t, following) in enumerate(zip(levels, levels[1:], strict=False), start=1):
        assert t is not None
        target = 1.0 if following is None else alpha_bars[following]
        x_t, x0 = move(x_t, t, target)
        if project is not None:
            x_t = project(x_t, target)
        if on_step is not None:
            on_step(Step(index, len(levels) - 1, t, x0))
    return x_t


def _along(eps: Tensor, x: Tensor, alpha_bar: float, target: float) -> Tensor:
    """Return x at the level `target` along an eps that is not the one predicted at x."""
    return ddim_step(eps, (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5, alpha_bar, target)


def _falling(timesteps: Tensor, denoise: Denoiser) -> list[int]:
    return checked_timesteps(timesteps, denoise.schedule)[::-1]
