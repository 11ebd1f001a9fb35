from __future__ import annotations

import pytest
import torch
from exact_predictors import (
    conditional_predictor,
    log_prob_positive,
    mixture_eps,
    mixture_predictor,
    mode_eps,
    normal_eps,
    normal_predictor,
)
from torch import Tensor

from rdm.context import Context, Part
from rdm.diffusion import schedules
from rdm.diffusion.gaussian import PredictionType, Predictor, prediction_from, x0_from_eps
from rdm.diffusion.guidance import (
    ClassifierGuidance,
    Guidance,
    classifier_guided,
    combine,
    combine_by_weight,
    guided,
    guided_away,
    guided_by_source,
    guided_eps,
    guided_in_interval,
    guided_mean,
    led,
    scale_from_weight,
    weight_from_scale,
)
from rdm.diffusion.samplers import Denoiser, ddim_sample, ddpm_sample, seeded_noise
from rdm.diffusion.schedules import ancestral_timesteps, ddim_timesteps, gather

DDPM = schedules.ddpm_linear().build()
POSITIVE = Context(vector=torch.ones(1, 1))


def token_predictor(x: Tensor, t: Tensor, context: Context) -> Tensor:
    """Depends on everything that it is given, sample by sample."""
    assert context.tokens is not None
    return x * 0.5 + t.view(-1, 1) + context.tokens.sum(dim=(1, 2))[:, None]


def inputs(batch: int = 3, num_tokens: int = 4) -> tuple[Tensor, Tensor, Context]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, num_tokens, 5, generator=generator)
    return torch.randn(batch, 6, generator=generator), torch.arange(batch), Context(tokens=tokens)


def test_both_forms_of_classifier_free_guidance_agree() -> None:
    conditional, unconditional = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    for weight in (-1.0, 0.0, 0.5, 1.0, 4.0):
        by_scale = combine(conditional, unconditional, scale_from_weight(weight))
        assert torch.allclose(
            by_scale, combine_by_weight(conditional, unconditional, weight), rtol=0, atol=5e-6
        )
        in_double = combine(conditional.double(), unconditional.double(), 1 + weight)
        assert torch.allclose(
            in_double,
            combine_by_weight(conditional.double(), unconditional.double(), weight),
            rtol=0,
            atol=1e-6,
        )


def test_scale_is_one_more_than_the_weight_of_the_papers() -> None:
    assert scale_from_weight(2.0) == 3.0
    assert weight_from_scale(3.0) == 2.0


def test_scale_one_is_the_network_itself() -> None:
    assert guided(token_predictor, 1) is token_predictor
    assert guided(token_predictor, 1.0, inputs()[2]) is token_predictor


def test_scale_zero_is_unconditional_bitwise() -> None:
    x, t, context = inputs()
    assert torch.equal(
        guided(token_predictor, 0)(x, t, context), token_predictor(x, t, context.null())
    )


def test_guidance_acts_between_the_log_snrs_of_its_interval_alone() -> None:
    x, _, context = inputs(batch=3)
    t = torch.tensor([5, 400, 999])  # log-SNRs of about 5.8, -0.6 and -10
    level = torch.logit(DDPM.alphas_cumprod[t])
    assert (level > 3).tolist() == [True, False, False]
    assert (level < -3).tolist() == [False, False, True]
    result = guided_in_interval(token_predictor, guided(token_predictor, 3.0), DDPM, (-3, 3))(
        x, t, context
    )
    plain, everywhere = token_predictor(x, t, context), guided(token_predictor, 3.0)(x, t, context)
    assert torch.equal(result[[0, 2]], plain[[0, 2]])
    assert torch.equal(result[1], everywhere[1])
    assert not torch.equal(plain[1], everywhere[1])


@pytest.mark.parametrize(("timestep", "branches"), [(5, 1), (400, 2), (999, 1)])
def test_outside_of_the_interval_the_network_is_asked_once(timestep: int, branches: int) -> None:
    x, _, context = inputs(batch=3)
    rows = []

    def counting(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        rows.append(x_t.shape[0])
        return token_predictor(x_t, t, context)

    guided_in_interval(counting, guided(counting, 3.0), DDPM, (-3, 3))(
        x, torch.full((3,), timestep), context
    )
    assert sum(rows) == 3 * branches


def test_both_branches_run_in_one_call() -> None:
    x, t, context = inputs()
    sizes = []
    result = guided(lambda *a: sizes.append(a[0].shape[0]) or token_predictor(*a), 3.0)(
        x, t, context
    )
    assert sizes == [6]
    expected = combine(token_predictor(x, t, context), token_predictor(x, t, context.null()), 3.0)
    assert torch.allclose(result, expected, atol=1e-6)


def test_negative_context_takes_the_place_of_the_null_context() -> None:
    x, t, context = inputs()
    negative = Context(*(part.map(lambda values: values.flip(0) * 2) for part in context.parts))
    expected = combine(token_predictor(x, t, context), token_predictor(x, t, negative), 2.0)
    assert torch.allclose(
        guided(token_predictor, 2.0, negative)(x, t, context), expected, atol=1e-5
    )


def test_negative_context_may_hold_another_number_of_neighbors() -> None:
    x, t, context = inputs()
    negative = inputs(num_tokens=7)[2]
    expected = combine(token_predictor(x, t, context), token_predictor(x, t, negative), 2.0)
    assert torch.equal(guided(token_predictor, 2.0, negative)(x, t, context), expected)


def test_negative_context_with_other_ports_is_refused() -> None:
    x, t, context = inputs()
    with pytest.raises(ValueError, match="only one of them sets vector"):
        guided(token_predictor, 2.0, Context(tokens=context.tokens, vector=x))(x, t, context)


@pytest.mark.parametrize("prediction_type", ["v", "x0"])
def test_guidance_is_the_same_in_every_prediction_type(prediction_type: PredictionType) -> None:
    eps_c, eps_u, x_t = torch.randn(
        3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    conditional, unconditional, expected = (
        prediction_from(eps, x0_from_eps(eps, x_t, 0.4), 0.4, prediction_type)
        for eps in (eps_c, eps_u, combine(eps_c, eps_u, 3.0))
    )
    assert torch.allclose(combine(conditional, unconditional, 3.0), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("guidance_scale", "mean", "std"),
    [
        (1, 1.001, 0.238),
        (1.5, 1.093, 0.191),
        (2, 1.156, 0.171),
        (3, 1.252, 0.149),
        (5, 1.391, 0.129),
    ],
)
def test_guided_mixture_has_its_known_moments(
    guidance_scale: float, mean: float, std: float
) -> None:
    predict = guided(conditional_predictor(DDPM), guidance_scale)
    noise = seeded_noise([0], (50_000,))
    samples = ddim_sample(Denoiser(predict, DDPM, POSITIVE), noise, ddim_timesteps(1000, 100))
    assert samples.mean().item() == pytest.approx(mean, abs=0.004)
    assert samples.std().item() == pytest.approx(std, abs=0.0025)


def test_unguided_mixture_keeps_both_modes() -> None:
    denoise = Denoiser(guided(conditional_predictor(DDPM), 0), DDPM, POSITIVE)
    samples = ddim_sample(denoise, seeded_noise([0], (20_000,)), ddim_timesteps(1000, 50))
    assert (samples > 0).double().mean().item() == pytest.approx(0.5, abs=0.015)
    assert samples.std().item() == pytest.approx((1 + 0.25**2) ** 0.5, abs=0.02)


def positive_classifier(scale: float = 1.0) -> ClassifierGuidance:
    """The exact classifier of the positive mode, summed over the elements of a sample."""
    return ClassifierGuidance(
        lambda x, t: log_prob_positive(x, gather(DDPM.alphas_cumprod, t, x)).flatten(1).sum(dim=1),
        scale,
    )


@pytest.mark.parametrize("t", [0, 10, 250, 500, 999])
def test_exact_classifier_turns_the_mixture_into_its_mode(t: int) -> None:
    x = torch.linspace(-3, 3, 2001, dtype=torch.float64)[None]
    alpha_bar = DDPM.alpha_bars[t]
    gradient = positive_classifier().gradient(x, torch.tensor([t]))
    got = guided_eps(mixture_eps(x, alpha_bar), alpha_bar, gradient)
    assert (got - mode_eps(x, alpha_bar)).abs().max().item() < 2e-14


@pytest.mark.parametrize("prediction_type", ["eps", "v", "x0"])
def test_classifier_guided_predictor_of_every_type_is_the_conditional_one(
    prediction_type: PredictionType,
) -> None:
    x, t = torch.linspace(-2, 2, 101, dtype=torch.float64)[None], torch.tensor([300])
    alpha_bar = DDPM.alpha_bars[300]

    def expressed(eps: Tensor) -> Tensor:
        return prediction_from(eps, x0_from_eps(eps, x, alpha_bar), alpha_bar, prediction_type)

    predict = classifier_guided(
        lambda x, t, c: expressed(mixture_eps(x, alpha_bar)),
        positive_classifier(),
        DDPM,
        prediction_type,
    )
    assert torch.allclose(predict(x, t, Context()), expressed(mode_eps(x, alpha_bar)), atol=1e-12)


def test_classifier_scale_zero_changes_no_bit() -> None:
    predict = mixture_predictor(DDPM)
    assert classifier_guided(predict, positive_classifier(0.0), DDPM) is predict
    x, t = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 500])
    assert torch.equal(guided_mean(x, 0.3, positive_classifier(0.0).gradient(x, t)), x)
    assert torch.equal(guided_eps(x, 0.3, positive_classifier(0.0).gradient(x, t)), x)


def test_classifier_gradient_of_a_sample_does_not_see_the_batch() -> None:
    x, t = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 100, 500, 900]),
    )
    alone = torch.cat(
        [positive_classifier(2.0).gradient(x[i : i + 1], t[i : i + 1]) for i in range(4)]
    )
    assert torch.allclose(positive_classifier(2.0).gradient(x, t), alone, rtol=1e-6)


def sample_with_classifier(scale: float, sampler: str) -> Tensor:
    noise, predict = seeded_noise([0], (4000,)), mixture_predictor(DDPM)
    if sampler == "ddim":
        predict = classifier_guided(predict, positive_classifier(scale), DDPM)
        return ddim_sample(Denoiser(predict, DDPM), noise, ddim_timesteps(1000, 50))
    timesteps = ancestral_timesteps(1000, 100)
    return ddpm_sample(
        Denoiser(predict, DDPM), noise, timesteps, seeds=[0], classifier=positive_classifier(scale)
    )


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_stronger_classifier_guidance_gives_more_accuracy_and_less_variance(sampler: str) -> None:
    samples = [sample_with_classifier(scale, sampler) for scale in (0.0, 0.2, 0.5, 1.0, 3.0)]
    accuracy = [(x > 0).double().mean().item() for x in samples]
    spread = [x.std().item() for x in samples]
    assert accuracy == sorted(accuracy)
    assert accuracy[0] < 0.55
    assert accuracy[-1] > 0.99
    assert spread == sorted(spread, reverse=True)


def test_ancestral_classifier_guidance_of_scale_one_gives_the_mode() -> None:
    samples = sample_with_classifier(1.0, "ancestral")
    assert samples.mean().item() == pytest.approx(1.0, abs=0.03)
    assert samples.std().item() < 0.27


def two_sources() -> Context:
    return Context(
        Part("a", "vector", torch.full((3, 1), 0.2)), Part("b", "vector", torch.full((3, 1), 0.5))
    )


def counted(calls: list[int]) -> Predictor:
    """A predictor that is not linear in what its sources say together."""

    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        calls.append(x.shape[0])
        a, b = (part.values for part in context.parts)
        return x * (1 + a) + (a + 1) * (b + 2)

    return predict


def test_scales_by_source_follow_the_chain_rule() -> None:
    x, t, context, calls = torch.ones(3, 4), torch.arange(3), two_sources(), list[int]()
    predict = counted(calls)
    none, only_a = predict(x, t, context.null()), predict(x, t, context.null(["b"]))
    both = predict(x, t, context)
    calls.clear()
    got = guided_by_source(predict, {"a": 3.0, "b": 1.5})(x, t, context)
    assert torch.allclose(got, none + 3.0 * (only_a - none) + 1.5 * (both - only_a), atol=1e-5)
    assert calls == [9]  # three branches of three samples as one batch


@pytest.mark.parametrize(
    ("scales", "evaluations"),
    [({"a": 2.0, "b": 2.0}, 2), ({"a": 1.0, "b": 3.0}, 2), ({}, 1), ({"a": 0.0, "b": 0.0}, 1)],
)
def test_branches_without_weight_are_not_evaluated(
    scales: dict[str, float], evaluations: int
) -> None:
    x, t, context, calls = torch.ones(3, 4), torch.arange(3), two_sources(), list[int]()
    got = guided_by_source(counted(calls), scales)(x, t, context)
    assert calls == [3 * evaluations]
    if scales.get("a") == scales.get("b"):
        expected = guided(counted([]), scales.get("a", 1.0))(x, t, context)
        assert torch.allclose(got, expected, atol=1e-5)


def test_a_scale_of_no_source_is_refused() -> None:
    with pytest.raises(ValueError, match="a guidance scale for c, but the sources are: a, b"):
        guided_by_source(counted([]), {"c": 2.0})(torch.ones(3, 4), torch.arange(3), two_sources())


def test_a_weaker_network_is_led_away_from_in_the_same_context() -> None:
    x, t, context = torch.ones(2, 4), torch.arange(2), Context(vector=torch.full((2, 1), 0.5))

    def weaker(x: Tensor, t: Tensor, context: Context) -> Tensor:
        assert context.vector is not None
        return 0.1 * x * context.vector

    def strong(x: Tensor, t: Tensor, context: Context) -> Tensor:
        assert context.vector is not None
        return x * context.vector

    assert torch.allclose(led(strong, weaker, 3.0)(x, t, context), x * (0.05 + 3 * 0.45))
    assert led(strong, weaker, 1.0) is strong


def test_led_away_from_a_blurred_network_the_data_are_drawn_sharper() -> None:
    """Two normals of one mean: the weaker one is twice as wide, so guidance narrows."""
    wide = lambda x, t, c: normal_eps(x, gather(DDPM.alphas_cumprod, t, x), std=0.6)  # noqa: E731
    predict = led(normal_predictor(DDPM), wide, 2.0)
    samples = ddim_sample(
        Denoiser(predict, DDPM), seeded_noise([0], (20_000,)), ddim_timesteps(1000, 100)
    )
    assert samples.mean().item() == pytest.approx(0.7, abs=0.01)
    assert samples.std().item() < 0.27  # of 0.288 without guidance


def test_what_is_led_away_from_is_one_thing() -> None:
    with pytest.raises(ValueError, match="a negative context and a weaker network do not go"):
        Guidance(2.0, negative=Context(), weaker=token_predictor)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("negative_scale", [None, 0.0, 0.5, 4.0])
def test_a_negative_has_a_scale_of_its_own(scale: float, negative_scale: float | None) -> None:
    def predict(x_t: torch.Tensor, t: torch.Tensor, context: Context) -> torch.Tensor:
        assert context.tokens is not None
        return x_t * context.tokens.sum(dim=(1, 2))[:, None]

    x_t, t = torch.tensor([[1.0, 2.0]]), torch.tensor([3])
    context, negative = (
        Context(tokens=torch.full((1, 1, 1), 5.0)),
        Context(tokens=torch.ones(1, 2, 1)),
    )
    n = scale - 1 if negative_scale is None else negative_scale
    expected = x_t * ((1 - scale + n) * 0 + scale * 5 - n * 2)
    found = guided_away(predict, scale, negative, negative_scale)(x_t, t, context)
    assert torch.allclose(found, expected)
