"""What every name in the registry does, alone and with guidance."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from exact_predictors import MEAN, STD, conditional_predictor, mode_eps, normal_eps
from torch import Tensor

from rdm.context import Context, Part
from rdm.diffusion import schedules
from rdm.diffusion.gaussian_head import GaussianHead
from rdm.diffusion.guidance import Guidance
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.sampler_names import SAMPLERS, SamplerName, StepSpacing, check_fits
from rdm.diffusion.samplers import Denoiser, ddpm_sample, seeded_noise
from rdm.diffusion.schedules import ancestral_timesteps, ddim_timesteps, gather
from rdm.diffusion.thresholding import dynamic_threshold, static_threshold

DDPM = schedules.ddpm_linear().build()
HEAD = GaussianHead(DDPM)
NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
STOCHASTIC = ("ddim", "ddpm", "dpm++2m-sde")  # DDIM by its default, eta = 1
FITTING = [(name, spacing) for name, facts in SAMPLERS.items() for spacing in facts.spacings]


def positive(count: int) -> Context:
    return Context(vector=torch.ones(count, 1))


def drawn(name: SamplerName, guidance: Guidance, count: int = 8000, **settings: Any) -> Tensor:
    """Samples of the mixture, of which the context is the positive mode."""
    sampler = NamedSampler(name, **{"num_steps": 100, **settings})
    return HEAD.sample(
        conditional_predictor(DDPM),
        positive(1),
        shape=(count,),
        seeds=[0],
        sampler=sampler,
        guidance=guidance,
    )


def test_every_name_has_its_facts() -> None:
    assert set(SAMPLERS) == set(NAMES)


@pytest.mark.parametrize(("name", "spacing"), FITTING)
def test_every_sampler_with_every_spacing_finds_the_data(
    name: SamplerName, spacing: StepSpacing
) -> None:
    samples = drawn(name, Guidance(), spacing=spacing, num_steps=50)
    assert samples.mean().item() == pytest.approx(1.0, abs=0.03)
    # In 50 steps noise that is added leaves too little (DDIM, DDPM) or too much (SDE) behind.
    tolerance = 0.07 if name in STOCHASTIC else 0.03
    assert samples.std().item() == pytest.approx(0.25, abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_sharpens_with_every_sampler(name: SamplerName) -> None:
    spreads, means = [], []
    for scale in (1.0, 2.0, 5.0):
        samples = drawn(name, Guidance(scale), count=5000)
        spreads.append(samples.std().item())
        means.append(samples.mean().item())
    assert spreads == sorted(spreads, reverse=True)
    assert means == sorted(means)
    # Noise that is added forgets what guidance did where little was seen.
    assert means[-1] == pytest.approx(1.086, abs=0.006) if name in STOCHASTIC else means[-1] > 1.25


@pytest.mark.parametrize("name", ["plms", "dpm++2m", "unipc", "euler", "heun"])
def test_deterministic_samplers_have_the_known_guided_moments(name: SamplerName) -> None:
    samples = drawn(name, Guidance(3.0), count=20_000, spacing="uniform")
    # of the exact guided flow: mean 1.252 and std .149
    assert samples.mean().item() == pytest.approx(1.252, abs=0.02)
    assert samples.std().item() == pytest.approx(0.149, abs=0.012)


@pytest.mark.parametrize("name", NAMES)
def test_an_interval_switches_guidance_off_outside_of_it(name: SamplerName) -> None:
    nowhere = drawn(name, Guidance(4.0, interval=(50, 60)), count=300)
    everywhere = drawn(name, Guidance(4.0, interval=(-50, 50)), count=300)
    assert torch.equal(nowhere, drawn(name, Guidance(), count=300))
    assert torch.equal(everywhere, drawn(name, Guidance(4.0), count=300))


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_context_leads_away_with_every_sampler(name: SamplerName) -> None:
    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        assert context.vector is not None
        alpha_bar = gather(DDPM.alphas_cumprod, t, x)
        return normal_eps(x, alpha_bar, mean=context.vector, std=STD)

    def mean_of(guidance: Guidance) -> float:
        return (
            HEAD.sample(
                predict,
                Context(vector=torch.full((1, 1), 0.5)),
                shape=(2000,),
                seeds=[0],
                sampler=NamedSampler(name, 50),
                guidance=guidance,
            )
            .mean()
            .item()
        )

    # Guided normals of one spread: mean 0.5 + (s - 1) (0.5 - negative).
    away = mean_of(Guidance(2.0, negative=Context(vector=torch.full((1, 1), -0.3))))
    assert away == pytest.approx(0.5 + 0.8, abs=0.06)
    assert mean_of(Guidance(2.0)) == pytest.approx(0.5 + 0.5, abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_scales_by_source_act_with_every_sampler(name: SamplerName) -> None:
    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        mean = torch.stack([part.values for part in context.parts]).sum(0)
        return normal_eps(x, gather(DDPM.alphas_cumprod, t, x), mean=mean, std=STD)

    context = Context(
        Part("a", "vector", torch.full((1, 1), 0.2)), Part("b", "vector", torch.full((1, 1), 0.4))
    )
    samples = HEAD.sample(
        predict,
        context,
        shape=(2000,),
        seeds=[0],
        sampler=NamedSampler(name, 50),
        guidance=Guidance(1.0, by_source={"a": 3.0, "b": 0.5}),
    )
    assert samples.mean().item() == pytest.approx(3 * 0.2 + 0.5 * 0.4, abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_autoguidance_leads_past_the_weaker_network(name: SamplerName) -> None:
    """The weaker network has learned the same mean, and blurs it: led away, the blur is undone."""

    def weaker(x: Tensor, t: Tensor, context: Context) -> Tensor:
        return normal_eps(x, gather(DDPM.alphas_cumprod, t, x), mean=MEAN - 0.2, std=2 * STD)

    def strong(x: Tensor, t: Tensor, context: Context) -> Tensor:
        return normal_eps(x, gather(DDPM.alphas_cumprod, t, x))

    def sample(scale: float) -> Tensor:
        return HEAD.sample(
            strong,
            Context(),
            shape=(4000,),
            seeds=[0],
            sampler=NamedSampler(name, 50),
            guidance=Guidance(scale, weaker=weaker),
        )

    plain, led = sample(1.0), sample(2.0)
    assert led.std() < plain.std()
    assert led.mean() > plain.mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bound", [static_threshold, dynamic_threshold])
def test_thresholds_hold_with_every_sampler(name: SamplerName, bound: Any) -> None:
    def far(x: Tensor, t: Tensor, context: Context) -> Tensor:
        return mode_eps(x, gather(DDPM.alphas_cumprod, t, x), sign=4)

    guesses = []
    samples = HEAD.sample(
        far,
        Context(),
        shape=(200,),
        seeds=[0],
        sampler=NamedSampler(name, 20),
        thresholding=bound,
        on_step=lambda step: guesses.append(step.x0.abs().max().item()),
    )
    assert max(guesses) <= 1 + 1e-6
    assert samples.abs().max().item() < 1.2


@pytest.mark.parametrize("name", NAMES)
def test_sample_of_a_seed_does_not_depend_on_the_batch(name: SamplerName) -> None:
    def sample(seeds: list[int]) -> Tensor:
        sampler = NamedSampler(name, 10)
        denoise = HEAD.denoiser(conditional_predictor(DDPM), Context(vector=torch.ones(1, 1)))
        noise = seeded_noise(seeds, (7,), dtype=torch.float64)
        return sampler.run(denoise, noise, sampler.timesteps(DDPM), seeds=seeds)

    assert torch.equal(sample([4, 7, 1]), torch.cat([sample([4]), sample([7]), sample([1])]))
    assert not torch.equal(sample([4]), sample([7]))


def test_the_default_is_how_rdm_samples() -> None:
    assert NamedSampler() == NamedSampler("ddim", 100, "uniform", None, None)
    assert torch.equal(NamedSampler().timesteps(DDPM), ddim_timesteps(1000, 100))
    by_eta = drawn("ddim", Guidance(), count=100, eta=1.0)
    assert torch.equal(by_eta, drawn("ddim", Guidance(), count=100))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("dpm++2m", {"eta": 0.0}, "DPM-Solver\\+\\+ 2M has no eta: .* sampler=ddim"),
        ("ddpm", {"eta": 1.0}, "has no eta"),
        ("ddim", {"variance": "beta"}, "DDIM has no variance: .* sampler=ddpm"),
        ("ddpm", {"spacing": "karras"}, "does not go with karras spacing: set spacing=uniform or"),
        ("plms", {"spacing": "karras"}, "does not go with karras"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    name: SamplerName, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check_fits(name, **settings)
    with pytest.raises(ValueError, match=words):
        NamedSampler(name, **settings)


@pytest.mark.parametrize("name", ["ddpm", "plms"])
def test_too_few_steps_are_refused(name: SamplerName) -> None:
    with pytest.raises(ValueError, match="takes at least 2 steps"):
        NamedSampler(name, 1)


@pytest.mark.parametrize("num_steps", [5, 10, 20])
def test_karras_timesteps_are_those_of_diffusers(num_steps: int) -> None:
    reference = DPMSolverMultistepScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    reference.set_timesteps(num_steps)
    expected = torch.as_tensor(reference.timesteps).flip(0)
    ours = NamedSampler("dpm++2m", num_steps, "karras").timesteps(schedules.rdm().build())
    # diffusers rounds between two timesteps, ours is the nearest level
    assert (ours - expected).abs().max().item() <= 1


@pytest.mark.parametrize("num_steps", [10, 25, 50, 100, 250, 1000])
def test_learned_variance_at_its_optimum_has_the_datas_spread_at_any_number_of_steps(
    num_steps: int,
) -> None:
    """With the best variance for normal data, which lies between beta-tilde and beta, ancestral
    sampling is exact however few the steps are: .2998 of .3, where beta has .4410 in ten steps."""
    levels, grid = DDPM.alpha_bars, ancestral_timesteps(1000, num_steps).tolist()
    before = {t: levels[grid[place - 1]] if place else 1.0 for place, t in enumerate(grid)}

    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        ab, ab_prev = levels[int(t[0])], before[int(t[0])]
        eps = normal_eps(x, ab)
        # What is not known of x_0 spreads the posterior's mean.
        unknown = STD**2 * (1 - ab) / (ab * STD**2 + 1 - ab)
        on_x0 = ab_prev**0.5 * (1 - ab / ab_prev) / (1 - ab)
        beta, posterior = 1 - ab / ab_prev, (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)
        optimal = posterior + on_x0**2 * unknown
        if not posterior:
            return torch.cat([eps, torch.zeros_like(eps)], dim=1)
        low, high = (torch.tensor(value).log() for value in (posterior, beta))
        place = (torch.tensor(optimal).log() - low) / (high - low)
        return torch.cat([eps, torch.full_like(eps, float(2 * place - 1))], dim=1)

    denoise = Denoiser(predict, DDPM, learned_variance=True)
    noise = seeded_noise([5], (20_000,))
    samples = ddpm_sample(denoise, noise, torch.tensor(grid), seeds=[5], variance="learned")
    assert samples.std().item() == pytest.approx(0.2998, abs=0.005)


def test_guidance_leaves_a_learned_variance_alone() -> None:
    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        assert context.vector is not None
        return torch.cat([x * context.vector, context.vector * torch.ones_like(x)], dim=1)

    x, t, context = torch.ones(1, 4), torch.tensor([5]), Context(vector=torch.full((1, 1), 0.5))
    for guidance in (
        Guidance(3.0),
        Guidance(3.0, by_source={"vector": 3.0}),
        Guidance(3.0, weaker=lambda x, t, context: torch.zeros(1, 8)),
    ):
        prediction = guidance.of(predict, DDPM)(x, t, context)
        assert torch.equal(prediction[:, :4], torch.full((1, 4), 1.5))
        assert torch.equal(prediction[:, 4:], torch.full((1, 4), 0.5))


def test_a_variance_that_was_not_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="has not learned a variance"):
        drawn("ddpm", Guidance(), count=3, num_steps=10, variance="learned")
