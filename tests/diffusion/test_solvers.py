"""Each solver against exact solutions, and against diffusers' own loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from exact_predictors import MEAN, STD, mixture_predictor, normal_predictor
from torch import Tensor

from rdm.context import Context
from rdm.diffusion import schedules
from rdm.diffusion.sampler_names import SAMPLERS, SamplerName
from rdm.diffusion.samplers import Denoiser, ddim_sample, seeded_noise
from rdm.diffusion.schedules import NoiseSchedule, ddim_timesteps, linspace_timesteps
from rdm.diffusion.solvers import diffusers_sample, euler_sample, heun_sample, plms_sample

RDM = schedules.rdm().build()
SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler_sample,
    "heun": heun_sample,
    "plms": plms_sample,
    "dpm++2m": partial(diffusers_sample, "dpm++2m"),
    "unipc": partial(diffusers_sample, "unipc"),
}


def log_snr_schedule(num_levels: int = 2049, low: float = -6.0, high: float = 6.0) -> NoiseSchedule:
    """Log-SNRs at equal distances, so that every part of a step's error falls with its length."""
    levels = torch.sigmoid(torch.linspace(high, low, num_levels, dtype=torch.float64))
    before = torch.cat([torch.ones(1, dtype=torch.float64), levels[:-1]])
    return NoiseSchedule.from_betas(1 - levels / before)


EVEN = log_snr_schedule()


def exact_normal(x: Tensor, alpha_bar: float, target: float) -> Tensor:
    """The probability-flow map of normal data: the number of standard deviations stays."""

    def spread(level: float) -> float:
        return (level * STD**2 + 1 - level) ** 0.5

    deviations = (x - alpha_bar**0.5 * MEAN) / spread(alpha_bar)
    return target**0.5 * MEAN + spread(target) * deviations


def even_grid(num_steps: int) -> Tensor:
    """Timesteps whose first is 0, which clean solvers take for a step, and DDIM's for the end."""
    return torch.arange(0, 2049, 2048 // num_steps)


def errors(name: str, numbers: tuple[int, ...]) -> list[float]:
    """The greatest error at each number of steps, of the last guess at the cleanest level."""
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[None]
    there = exact_normal(x, EVEN.alpha_bars[-1], EVEN.alpha_bars[0])
    denoise = Denoiser(normal_predictor(EVEN), EVEN)
    # The last step of the solvers to clean data takes the guess there; PLMS stays at level 0.
    expected = there if name == "plms" else denoise(there, 0)[1]
    return [
        (SOLVERS[name](denoise, x, even_grid(number)) - expected).abs().max().item()
        for number in numbers
    ]


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("heun", 2), ("plms", 2), ("dpm++2m", 2), ("unipc", 2)]
)
def test_errors_fall_with_the_order_of_the_solver(name: str, order: int) -> None:
    coarse, middle, fine = errors(name, (32, 64, 128))
    orders = [math.log2(coarse / middle), math.log2(middle / fine)]
    assert min(orders) > order - 0.25
    assert fine < 0.02


def test_second_order_needs_fewer_steps_than_first() -> None:
    first = errors("euler", (128,))[0]
    for name in ("heun", "dpm++2m", "unipc"):
        assert errors(name, (32,))[0] < first


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_agree_on_the_mixture(name: str) -> None:
    """The mixture's flow is monotone, so it takes quantiles to quantiles: half to either mode."""
    x = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)[None]
    denoise = Denoiser(mixture_predictor(EVEN), EVEN)
    reference = heun_sample(denoise, x, even_grid(1024))
    assert (SOLVERS[name](denoise, x, even_grid(128)) - reference).abs().max().item() < 0.12
    assert bool((reference[0, 16:] > 0).all() and (reference[0, :15] < 0).all())
    assert abs(reference[0, 15].item()) < 1e-9


@pytest.mark.parametrize("name", SOLVERS)
def test_spread_is_that_of_the_data(name: str) -> None:
    noise = seeded_noise([0], (16_000,))
    samples = SOLVERS[name](Denoiser(normal_predictor(EVEN), EVEN), noise, even_grid(128))
    # Euler's first-order error, and the guess at the cleanest level, whose spread is a little less.
    assert samples.std().item() == pytest.approx(STD, abs=0.012)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)


def test_sde_solver_keeps_the_variance_that_its_noise_adds() -> None:
    noise = seeded_noise([3], (50_000,))
    denoise = Denoiser(normal_predictor(EVEN), EVEN)
    spreads = [
        diffusers_sample("dpm++2m-sde", denoise, noise, even_grid(number), seeds=[3]).std().item()
        for number in (4, 8, 64)
    ]
    # The last step takes the guess at the cleanest level, which is spread a little less than data.
    noise_there = (1 - EVEN.alpha_bars[0]) / EVEN.alpha_bars[0]
    expected = STD**2 / (STD**2 + noise_there) ** 0.5
    errors = [abs(spread - expected) for spread in spreads]
    assert errors[2] < 0.004  # of which chance has 0.001
    assert errors[0] > errors[1] > errors[2]


def test_sde_noise_is_forgotten_by_the_end() -> None:
    """Two seeds of one latent end in different pictures: nothing of the SDE is deterministic."""
    denoise = Denoiser(mixture_predictor(RDM), RDM)
    latent = seeded_noise([0], (500,)).expand(2, -1)
    first, second = diffusers_sample(
        "dpm++2m-sde", denoise, latent, ddim_timesteps(1000, 50), seeds=[1, 2]
    )
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.2


def test_sde_without_a_seed_for_each_sample_is_refused() -> None:
    denoise = Denoiser(normal_predictor(RDM), RDM)
    for seeds in (None, [1]):
        with pytest.raises(ValueError, match="takes one seed for each of 2 samples"):
            diffusers_sample(
                "dpm++2m-sde", denoise, torch.zeros(2, 3), ddim_timesteps(1000, 5), seeds=seeds
            )


def test_euler_is_deterministic_ddim_but_for_its_last_step() -> None:
    denoise = Denoiser(mixture_predictor(RDM), RDM)
    noise, timesteps = seeded_noise([0], (50,), dtype=torch.float64), ddim_timesteps(1000, 20)
    ended, guesses = [], []
    ddim_sample(denoise, noise, timesteps, on_step=lambda step: ended.append(step.x0))
    samples = euler_sample(denoise, noise, timesteps, on_step=lambda s: guesses.append(s.x0))
    assert torch.equal(torch.stack(ended), torch.stack(guesses))
    assert torch.allclose(samples, guesses[-1], atol=1e-12)


def bent(x: Tensor, t: Tensor | int) -> Tensor:
    """A predictor that is neither exact nor affine."""
    return torch.tanh(x) * (0.5 + t / 2000)


def released(kind: Any, **settings: Any) -> Any:
    """A scheduler of diffusers with the released schedule."""
    given = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    return kind(**given, **settings)


def loop_of_diffusers(scheduler: Any, noise: Tensor, scale: float) -> Tensor:
    """The loop of diffusers' pipelines; `scale` is that of x in this scheduler's first step."""
    x = noise * scale
    for index, t in enumerate(scheduler.timesteps, start=1):
        model_input = scheduler.scale_model_input(x, t)
        given = {}
        if getattr(scheduler.config, "algorithm_type", "") == "sde-dpmsolver++":
            given = {"variance_noise": seeded_noise([3, 4], x.shape[1:], index)}
        x = scheduler.step(bent(model_input, t), t, x, **given).prev_sample
    return x


@pytest.mark.parametrize("name", [*SOLVERS, "dpm++2m-sde"])
def test_solvers_walk_the_same_trajectory_as_diffusers(name: str) -> None:
    noise = seeded_noise([3, 4], (3, 8, 8))
    num_steps, rule = 20, linspace_timesteps
    kinds: dict[str, Callable[[], Any]] = {
        "euler": lambda: released(EulerDiscreteScheduler),
        "heun": lambda: released(HeunDiscreteScheduler),
        "plms": lambda: released(
            PNDMScheduler, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
        ),
        "dpm++2m": lambda: released(DPMSolverMultistepScheduler),
        "dpm++2m-sde": lambda: released(
            DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"
        ),
        "unipc": lambda: released(UniPCMultistepScheduler),
    }
    scheduler, timesteps = kinds[name](), rule(1000, num_steps)
    if name == "plms":
        timesteps = ddim_timesteps(1000, num_steps)
        scheduler.set_timesteps(num_steps)
    elif name in ("euler", "heun"):
        scheduler.set_timesteps(timesteps=timesteps.flip(0).tolist())
    else:
        scheduler.set_timesteps(num_steps)
        assert scheduler.timesteps.tolist() == timesteps.flip(0).tolist()
    scale = RDM.alpha_bars[int(timesteps[-1])] ** -0.5 if name in ("euler", "heun") else 1.0
    expected = loop_of_diffusers(scheduler, noise, scale)

    denoise = Denoiser(lambda x, t, c: bent(x, t.view(-1, 1, 1, 1)), RDM)
    given = {"seeds": [3, 4]} if name == "dpm++2m-sde" else {}
    solve = SOLVERS.get(name, partial(diffusers_sample, "dpm++2m-sde"))
    got = solve(denoise, noise, timesteps, **given)
    assert torch.allclose(got, expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", [*SOLVERS, "dpm++2m-sde"])
def test_sample_of_a_seed_does_not_depend_on_the_batch(name: str) -> None:
    denoise, timesteps = Denoiser(mixture_predictor(RDM), RDM), ddim_timesteps(1000, 10)

    def sample(seeds: list[int]) -> Tensor:
        given = {"seeds": seeds} if name == "dpm++2m-sde" else {}
        solve = SOLVERS.get(name, partial(diffusers_sample, "dpm++2m-sde"))
        noise = seeded_noise(seeds, (3, 4, 4), dtype=torch.float64)
        return solve(denoise, noise, timesteps, **given)

    together = sample([5, 9, 2])
    assert together.dtype == torch.float64
    assert torch.equal(together, torch.cat([sample([5]), sample([9]), sample([2])]))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_step_is_told_and_projected(name: str) -> None:
    told, levels = [], list[float]()

    def project(x: Tensor, alpha_bar: float) -> Tensor:
        levels.append(alpha_bar)
        return torch.where(torch.arange(6) < 3, alpha_bar**0.5 * 0.25, x)

    timesteps = ddim_timesteps(1000, 5)
    samples = SOLVERS[name](
        Denoiser(normal_predictor(RDM), RDM),
        seeded_noise([0], (6,)),
        timesteps,
        on_step=told.append,
        project=project,
    )
    assert [(step.index, step.total, step.t) for step in told] == [
        (index, 5, t) for index, t in enumerate(timesteps.flip(0).tolist(), start=1)
    ]
    last = RDM.alpha_bars[0] if name == "plms" else 1.0
    assert levels == [*(RDM.alpha_bars[t] for t in timesteps.flip(0).tolist()[1:]), last]
    assert samples[0, :3].tolist() == pytest.approx([last**0.5 * 0.25] * 3)


@pytest.mark.parametrize(
    ("name", "evaluations"), [("euler", 10), ("heun", 19), ("plms", 11), ("dpm++2m", 10)]
)
def test_evaluations_of_the_network_are_as_documented(name: str, evaluations: int) -> None:
    calls = []

    def counting(x: Tensor, t: Tensor, context: Context) -> Tensor:
        calls.append(t)
        return 0.1 * x

    SOLVERS[name](Denoiser(counting, RDM), torch.zeros(1, 3), ddim_timesteps(1000, 10))
    assert len(calls) == evaluations


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("more", [0, 1, 2])
def test_the_fewest_steps_are_not_wild(name: SamplerName, more: int) -> None:
    num_steps = SAMPLERS[name].least_steps + more
    denoise = Denoiser(normal_predictor(RDM), RDM)
    samples = SOLVERS[name](denoise, seeded_noise([0], (9,)), linspace_timesteps(1000, num_steps))
    assert bool(samples.isfinite().all())
    assert (samples - MEAN).abs().max().item() < 2
