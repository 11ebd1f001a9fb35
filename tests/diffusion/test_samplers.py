from __future__ import annotations

from typing import Any, Literal

import hypothesis.strategies as st
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from exact_predictors import (
    MODE,
    MODE_STD,
    STD,
    exact_normal_moments,
    mixture_predictor,
    normal_eps,
    normal_predictor,
)
from hypothesis import given, settings
from torch import Tensor

from rdm.context import Context
from rdm.diffusion import schedules
from rdm.diffusion.gaussian import PredictionType, posterior_variance, prediction_from, x0_from_eps
from rdm.diffusion.samplers import (
    AncestralVariance,
    Denoiser,
    ddim_invert,
    ddim_sample,
    ddim_step,
    ddpm_sample,
    ddpm_step,
    seeded_noise,
)
from rdm.diffusion.schedules import (
    NoiseSchedule,
    ancestral_timesteps,
    ddim_timesteps,
    linspace_timesteps,
)
from rdm.diffusion.thresholding import static_threshold

DDPM = schedules.ddpm_linear().build()
RDM = schedules.rdm().build()
SCHEDULES = {"ddpm": DDPM, "rdm": RDM}
KNOWN_STDS = [
    ("ddpm", 50, 0.2756, 0.2523),
    ("ddpm", 100, 0.2881, 0.2719),
    ("ddpm", 250, 0.2955, 0.2878),
    pytest.param("ddpm", 1000, 0.2991, 0.2969, marks=pytest.mark.slow),
    ("rdm", 50, 0.2713, 0.2447),
    ("rdm", 100, 0.2854, 0.2654),
    ("rdm", 250, 0.2949, 0.2830),
    pytest.param("rdm", 1000, 0.2999, 0.2957, marks=pytest.mark.slow),
]


def sample_normal(
    schedule: NoiseSchedule, num_steps: int, eta: float, count: int = 100_000
) -> Tensor:
    noise = seeded_noise([1], (count,))
    timesteps = ddim_timesteps(1000, num_steps)
    return ddim_sample(
        Denoiser(normal_predictor(schedule), schedule), noise, timesteps, eta=eta, seeds=[1]
    )


@pytest.mark.parametrize(("name", "num_steps", "std_eta_0", "std_eta_1"), KNOWN_STDS)
@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_with_the_exact_predictor_has_its_known_spread(
    name: str, num_steps: int, std_eta_0: float, std_eta_1: float, eta: int
) -> None:
    samples = sample_normal(SCHEDULES[name], num_steps, eta, count=50_000)
    # The known values and these are both estimates, with standard errors of 0.0005 and 0.0009.
    assert samples.std().item() == pytest.approx(std_eta_1 if eta else std_eta_0, abs=0.0025)
    assert samples.mean().item() == pytest.approx(0.7, abs=0.012)


@pytest.mark.parametrize("name", ["ddpm", "rdm"])
@pytest.mark.parametrize("num_steps", [50, 100, 250, 1000])
def test_deterministic_ddim_has_the_moments_of_its_affine_map(name: str, num_steps: int) -> None:
    schedule = SCHEDULES[name]
    timesteps = ddim_timesteps(1000, num_steps)
    # mean 0 and std 1: an affine map shows its moments
    noise = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    samples = ddim_sample(Denoiser(normal_predictor(schedule), schedule), noise, timesteps)
    mean, std = exact_normal_moments(schedule, timesteps.tolist(), eta=0)
    assert samples.mean().item() == pytest.approx(mean, abs=1e-6)
    assert samples.std(correction=0).item() == pytest.approx(std, abs=1e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_ddim_has_the_moments_of_its_affine_map(eta: float) -> None:
    samples = sample_normal(RDM, 100, eta)
    mean, std = exact_normal_moments(RDM, ddim_timesteps(1000, 100).tolist(), eta)
    assert samples.mean().item() == pytest.approx(mean, abs=0.003)
    assert samples.std().item() == pytest.approx(std, abs=0.002)


@pytest.mark.parametrize(("variance", "std"), [("beta", 0.3019), ("posterior", 0.2963)])
def test_ancestral_sampling_has_its_known_spread(variance: AncestralVariance, std: float) -> None:
    denoise = Denoiser(normal_predictor(DDPM), DDPM)
    noise = seeded_noise([2], (30_000,))
    samples = ddpm_sample(
        denoise, noise, ancestral_timesteps(1000, 1000), seeds=[2], variance=variance
    )
    assert samples.std().item() == pytest.approx(std, abs=0.0025)
    assert samples.mean().item() == pytest.approx(0.700, abs=0.004)


@pytest.mark.parametrize(
    ("num_steps", "error"),
    [
        (10, 0.127),
        (25, 0.060),
        (50, 0.0316),
        (100, 0.0162),
        (250, 0.0066),
        (500, 0.0033),
        (999, 0.0017),
    ],
)
def test_inversion_and_back_errs_as_one_over_the_number_of_steps(
    num_steps: int, error: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1, 4000), generator=generator) * 2 - 1
    x0 = (signs * MODE + MODE_STD * torch.randn(1, 4000, generator=generator)).double()
    denoise, timesteps = (
        Denoiser(mixture_predictor(DDPM), DDPM),
        linspace_timesteps(1000, num_steps),
    )
    back = ddim_sample(denoise, ddim_invert(denoise, x0, timesteps), timesteps)
    assert (back - x0).abs().mean().item() == pytest.approx(error, rel=0.04)


@pytest.mark.parametrize(("num_steps", "std"), [(10, 0.71), (999, 0.99)])
def test_inverted_latents_become_standard_normal_with_many_steps(
    num_steps: int, std: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1, 20_000), generator=generator) * 2 - 1
    x0 = signs * MODE + MODE_STD * torch.randn(1, 20_000, generator=generator)
    latents = ddim_invert(
        Denoiser(mixture_predictor(DDPM), DDPM), x0, linspace_timesteps(1000, num_steps)
    )
    assert latents.std().item() == pytest.approx(std, abs=0.015)


def bent(x: Tensor, t: Tensor | int) -> Tensor:
    """A predictor that is neither exact nor affine."""
    return torch.tanh(x) * (0.5 + t / 2000)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["eps", "v", "x0"])
def test_ddim_walks_the_same_trajectory_as_diffusers(
    eta: float, prediction_type: PredictionType
) -> None:
    names: dict[str, Any] = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    reference = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=names[prediction_type],
    )
    reference.set_timesteps(50)
    expected = noise = seeded_noise([3, 4], (3, 8, 8))
    for index, t in enumerate(reference.timesteps.tolist(), start=1):
        variance_noise = seeded_noise([3, 4], (3, 8, 8), index) if eta else None
        step = reference.step(
            bent(expected, t), t, expected, eta=eta, variance_noise=variance_noise
        )
        expected = step.prev_sample  # type: ignore[union-attr]
    denoise = Denoiser(
        lambda x, t, c: bent(x, t.view(-1, 1, 1, 1)), RDM, prediction_type=prediction_type
    )
    got = ddim_sample(denoise, noise, ddim_timesteps(1000, 50), eta=eta, seeds=[3, 4])
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_ddim_with_thresholding_walks_the_same_trajectory_as_diffusers() -> None:
    reference = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    reference.set_timesteps(20)
    expected = noise = seeded_noise([5], (3, 8, 8))
    for t in reference.timesteps.tolist():
        step = reference.step(bent(expected, t), t, expected, use_clipped_model_output=True)
        expected = step.prev_sample  # type: ignore[union-attr]
    denoise = Denoiser(
        lambda x, t, c: bent(x, t.view(-1, 1, 1, 1)), RDM, thresholding=static_threshold
    )
    assert torch.allclose(
        ddim_sample(denoise, noise, ddim_timesteps(1000, 20)), expected, atol=1e-4
    )


@pytest.mark.parametrize(
    ("variance", "name"), [("posterior", "fixed_small"), ("beta", "fixed_large")]
)
def test_ancestral_steps_are_those_of_diffusers(
    variance: AncestralVariance, name: Literal["fixed_small", "fixed_large"]
) -> None:
    reference = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type=name, clip_sample=False)
    x = seeded_noise([6], (3, 8, 8))
    for t in (999, 998, 500, 2, 1, 0):
        prediction = bent(x, t)
        step = reference.step(prediction, t, x, generator=torch.Generator().manual_seed(t))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t)) if t else None
        alpha_bar, previous = DDPM.alpha_bars[t], DDPM.alpha_bars[t - 1] if t else 1.0
        got = ddpm_step(
            x, x0_from_eps(prediction, x, alpha_bar), alpha_bar, previous, variance, noise=noise
        )
        assert torch.allclose(got, step.prev_sample, atol=2e-4)  # type: ignore[union-attr]


@given(st.floats(1e-4, 0.9), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_ddim_with_eta_one_is_the_ancestral_step(alpha_bar: float, ratio: float, seed: int) -> None:
    previous = alpha_bar + ratio * (1 - alpha_bar)
    x_t, eps, noise = torch.randn(
        3, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    x0 = x0_from_eps(eps, x_t, alpha_bar)
    ancestral = ddpm_step(x_t, x0, alpha_bar, previous, "posterior", noise=noise)
    assert torch.allclose(ddim_step(eps, x0, alpha_bar, previous, 1.0, noise), ancestral, atol=1e-9)


def test_ddim_step_there_and_back_with_one_noise_is_the_identity() -> None:
    eps, x0 = torch.randn(2, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = ddim_step(eps, x0, 0.3, 0.8)
    assert torch.allclose(x, 0.8**0.5 * x0 + 0.2**0.5 * eps, atol=1e-14)


@pytest.mark.parametrize("prediction_type", ["v", "x0"])
def test_samples_do_not_depend_on_the_prediction_type(prediction_type: PredictionType) -> None:
    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        alpha_bar = DDPM.alphas_cumprod[t].view(-1, 1)
        eps = normal_eps(x, alpha_bar)
        return prediction_from(eps, x0_from_eps(eps, x, alpha_bar), alpha_bar, prediction_type)

    noise, timesteps = seeded_noise([0, 1], (5,), dtype=torch.float64), ddim_timesteps(1000, 20)
    expected = ddim_sample(
        Denoiser(normal_predictor(DDPM), DDPM), noise, timesteps, eta=1, seeds=[0, 1]
    )
    denoise = Denoiser(predict, DDPM, prediction_type=prediction_type)
    assert torch.allclose(
        ddim_sample(denoise, noise, timesteps, eta=1, seeds=[0, 1]), expected, atol=1e-9
    )


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), st.integers(0, 2000))
def test_noise_of_a_seed_does_not_depend_on_the_batch(seeds: list[int], step: int) -> None:
    together = seeded_noise(seeds, (2, 3), step)
    alone = torch.cat([seeded_noise([seed], (2, 3), step) for seed in seeds])
    assert torch.equal(together, alone)


def test_noise_differs_between_seeds_and_steps() -> None:
    rows = torch.cat([seeded_noise(range(50), (4,), step) for step in range(4)])
    assert rows.unique(dim=0).shape[0] == 200


def test_noise_is_standard_normal_across_seeds() -> None:
    rows = seeded_noise(range(20_000), (3,), 7)
    assert rows.mean().item() == pytest.approx(0, abs=0.015)
    assert rows.std().item() == pytest.approx(1, abs=0.012)
    assert torch.corrcoef(rows.T).fill_diagonal_(0).abs().max().item() < 0.03
    assert torch.corrcoef(torch.stack([rows[:-1, 0], rows[1:, 0]]))[0, 1].abs().item() < 0.03


def test_noise_is_pinned() -> None:
    expected = torch.tensor([[-0.0048, -0.1787, -0.6984]])
    assert torch.allclose(seeded_noise([7], (3,), 2), expected, atol=1e-4)


@pytest.mark.parametrize("seeds", [[], [-1], [2**64]])
def test_impossible_seeds_are_refused(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="seeds must be"):
        seeded_noise(seeds, (3,))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sample_of_a_seed_does_not_depend_on_the_batch(eta: float) -> None:
    denoise, timesteps = Denoiser(mixture_predictor(RDM), RDM), ddim_timesteps(1000, 10)

    def sample(seeds: list[int]) -> Tensor:
        return ddim_sample(denoise, seeded_noise(seeds, (3, 4, 4)), timesteps, eta=eta, seeds=seeds)

    assert torch.equal(sample([5, 9, 2]), torch.cat([sample([5]), sample([9]), sample([2])]))
    assert torch.equal(sample([9, 5]), sample([5, 9]).flip(0))


def test_ancestral_sample_of_a_seed_does_not_depend_on_the_batch() -> None:
    denoise, timesteps = Denoiser(mixture_predictor(RDM), RDM), ancestral_timesteps(1000, 10)

    def sample(seeds: list[int]) -> Tensor:
        return ddpm_sample(denoise, seeded_noise(seeds, (3, 4, 4)), timesteps, seeds=seeds)

    assert torch.equal(sample([5, 9]), torch.cat([sample([5]), sample([9])]))


def test_variations_of_one_latent_spread_with_eta() -> None:
    denoise, timesteps = Denoiser(mixture_predictor(RDM), RDM), ddim_timesteps(1000, 50)
    latent = seeded_noise([0], (100,)).expand(32, -1)
    spreads = [
        ddim_sample(denoise, latent, timesteps, eta=eta, seeds=range(32)).std(dim=0).mean().item()
        for eta in (0.0, 0.1, 0.3, 1.0)
    ]
    assert spreads[0] == 0
    assert spreads == sorted(spreads)
    assert spreads[-1] > 0.5


def test_progress_is_told_after_each_step() -> None:
    steps = []
    denoise = Denoiser(normal_predictor(DDPM), DDPM)
    ddim_sample(denoise, torch.zeros(2, 3), ddim_timesteps(1000, 4), on_step=steps.append)
    assert [(step.index, step.total, step.t) for step in steps] == [
        (1, 4, 751),
        (2, 4, 501),
        (3, 4, 251),
        (4, 4, 1),
    ]
    assert all(step.x0.shape == (2, 3) for step in steps)


def test_projection_keeps_known_content() -> None:
    known, kept = torch.full((1, 10), 0.25), torch.arange(10) < 5
    noise = seeded_noise([0], (10,))
    samples = ddim_sample(
        Denoiser(normal_predictor(DDPM), DDPM),
        noise,
        ddim_timesteps(1000, 20),
        project=lambda x, ab: torch.where(kept, ab**0.5 * known + (1 - ab) ** 0.5 * noise, x),
    )
    alpha_bar = DDPM.alpha_bars[0]
    assert torch.equal(
        samples[:, kept], (alpha_bar**0.5 * known + (1 - alpha_bar) ** 0.5 * noise)[:, kept]
    )


def test_ancestral_projection_ends_clean() -> None:
    known = torch.full((1, 10), 0.25)
    samples = ddpm_sample(
        Denoiser(normal_predictor(DDPM), DDPM),
        seeded_noise([0], (10,)),
        ancestral_timesteps(1000, 20),
        seeds=[0],
        project=lambda x, ab: ab**0.5 * known + (1 - ab) ** 0.5 * x,
    )
    assert torch.equal(samples, known)


def test_fewer_timesteps_start_from_a_partly_noised_sample() -> None:
    timesteps = ddim_timesteps(1000, 50)
    denoise = Denoiser(normal_predictor(DDPM), DDPM)
    steps = []
    ddim_sample(denoise, torch.zeros(1, 4), timesteps[:10], on_step=steps.append)
    assert [step.t for step in steps] == list(range(181, 0, -20))


@pytest.mark.parametrize("timesteps", [[], [5, 5], [9, 3], [-1, 4], [4, 1000]])
def test_timesteps_that_do_not_rise_within_the_schedule_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(ValueError, match="timesteps must rise"):
        ddim_sample(
            Denoiser(normal_predictor(DDPM), DDPM), torch.zeros(1, 2), torch.tensor(timesteps)
        )


@pytest.mark.parametrize(
    ("eta", "seeds", "message"),
    [
        (1.0, None, "none given"),
        (1.0, [1], "1 given"),
        (1.5, [1, 2], "eta"),
        (-0.1, [1, 2], "eta"),
    ],
)
def test_sampling_noise_without_its_seeds_is_refused(
    eta: float, seeds: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ddim_sample(
            Denoiser(normal_predictor(DDPM), DDPM),
            torch.zeros(2, 2),
            ddim_timesteps(1000, 10),
            eta=eta,
            seeds=seeds,
        )


def test_sampling_builds_no_graph() -> None:
    weight = torch.ones(1, requires_grad=True)
    denoise = Denoiser(lambda x, t, c: x * weight, DDPM)
    assert not ddim_sample(denoise, torch.zeros(1, 2), ddim_timesteps(1000, 2)).requires_grad


def test_bfloat16_predictions_leave_the_state_in_float32() -> None:
    denoise = Denoiser(lambda x, t, c: x.bfloat16(), DDPM)
    assert ddim_sample(denoise, torch.zeros(1, 2), ddim_timesteps(1000, 2)).dtype == torch.float32


def exact_ancestral_std(num_steps: int, variance: str) -> float:
    """Return the std that ancestral sampling gives: every step is affine in x, with noise of a
    known variance."""
    timesteps, levels = ancestral_timesteps(1000, num_steps).tolist(), DDPM.alpha_bars
    predict = normal_predictor(DDPM)
    spread = 1.0
    for index in range(num_steps - 1, -1, -1):
        t = timesteps[index]
        ab, ab_prev = levels[t], levels[timesteps[index - 1]] if index else 1.0
        points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        _, x0 = Denoiser(predict, DDPM)(points, t)
        moved = ddpm_step(points, x0, ab, ab_prev)
        slope = (moved[1] - moved[0]).item()
        if variance == "optimal":  # what is not known of x_0 spreads the posterior's mean
            unknown = STD**2 * (1 - ab) / (ab * STD**2 + 1 - ab)
            on_x0 = ab_prev**0.5 * (1 - ab / ab_prev) / (1 - ab)
            added = posterior_variance(ab, ab_prev) + on_x0**2 * unknown
        else:
            added = 1 - ab / ab_prev if variance == "beta" else posterior_variance(ab, ab_prev)
        spread = slope**2 * spread + (added if index else 0.0)  # the last step adds none
    return spread**0.5


@pytest.mark.parametrize(
    ("variance", "expected"),
    [
        ("beta", (0.4410, 0.3481, 0.3229, 0.3111, 0.3042, 0.3009)),
        ("posterior", (0.1636, 0.2237, 0.2522, 0.2718, 0.2870, 0.2963)),
        ("optimal", (0.2998,) * 6),
    ],
)
def test_ancestral_sampling_in_few_steps_has_its_exact_spread(
    variance: str, expected: tuple[float, ...]
) -> None:
    found = [exact_ancestral_std(num_steps, variance) for num_steps in (10, 25, 50, 100, 250, 1000)]
    assert found == pytest.approx(expected, abs=6e-5)


def test_the_step_adds_noise_of_the_variance_that_the_exact_spread_assumes() -> None:
    ab, ab_prev, zero = (
        DDPM.alpha_bars[300],
        DDPM.alpha_bars[200],
        torch.zeros(1, 1, dtype=torch.float64),
    )
    assumed: tuple[tuple[AncestralVariance, float], ...] = (
        ("beta", 1 - ab / ab_prev),
        ("posterior", posterior_variance(ab, ab_prev)),
    )
    for variance, expected in assumed:
        moved = ddpm_step(zero, zero, ab, ab_prev, variance, noise=torch.ones_like(zero))
        assert moved.item() ** 2 == pytest.approx(expected)
