from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rdm.context import Context
from rdm.diffusion import schedules
from rdm.diffusion.gaussian import (
    PredictionType,
    Predictor,
    diffusion_loss,
    draw_noise,
    eps_and_x0,
    eps_from_x0,
    loss_weights,
    prediction_from,
    prior_kl,
    q_posterior,
    q_sample,
    q_step,
    v_from_eps_x0,
    x0_from_eps,
)

TYPES = ["eps", "v", "x0"]
DDPM = schedules.ddpm_linear().build()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_step_noising_iterated_has_the_moments_of_the_closed_form() -> None:
    # Each step is affine: x_0 = 1 without noise gives the mean, x_0 = 0 with variances added gives
    # the variance.
    mean, variance = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for step in range(1000):
        t = torch.tensor([step])
        mean = q_step(DDPM, mean, t, torch.zeros_like(mean))
        kept = q_step(DDPM, torch.ones_like(variance), t, torch.zeros_like(mean)) ** 2
        added = q_step(DDPM, torch.zeros_like(variance), t, torch.ones_like(mean)) ** 2
        variance = kept * variance + added
    last, zero = torch.tensor([999]), torch.zeros(1, 1, dtype=torch.float64)
    assert mean.item() == pytest.approx(
        q_sample(DDPM, torch.ones_like(zero), last, zero).item(), abs=1e-15
    )
    assert variance.item() == pytest.approx(
        q_sample(DDPM, zero, last, torch.ones_like(zero)).item() ** 2, abs=1e-12
    )


def test_one_step_noising_iterated_has_the_distribution_of_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.full((1, 20_000), 2.0)
    for step in range(200):
        x = q_step(DDPM, x, torch.tensor([step]), torch.randn(x.shape, generator=generator))
    alpha_bar = DDPM.alpha_bars[199]
    assert x.mean().item() == pytest.approx(2 * alpha_bar**0.5, abs=0.02)
    assert x.var().item() == pytest.approx(1 - alpha_bar, abs=0.02)


def test_each_sample_is_noised_to_its_own_level() -> None:
    x0, noise, t = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor([0, 500, 999])
    batch = q_sample(DDPM, x0, t, noise)
    single = torch.cat(
        [q_sample(DDPM, x0[i : i + 1], t[i : i + 1], noise[i : i + 1]) for i in range(3)]
    )
    assert torch.equal(batch, single)


def test_posterior_agrees_with_bayes_rule() -> None:
    # p(x_{t-1} | x_t, x_0) is proportional to p(x_t | x_{t-1}) p(x_{t-1} | x_0): precisions add.
    t, x0, x_t = torch.tensor([400]), normal(1, 5), normal(1, 5, seed=1)
    mean, variance = q_posterior(DDPM, x0, x_t, t)
    beta, prev = DDPM.betas[400], DDPM.alphas_cumprod[399]
    precision = (1 - beta) / beta + 1 / (1 - prev)
    expected = ((1 - beta).sqrt() / beta * x_t + prev.sqrt() / (1 - prev) * x0) / precision
    assert variance.item() == pytest.approx(1 / precision.item(), rel=1e-12)
    assert torch.allclose(mean, expected, rtol=1e-12)


def test_posterior_of_the_first_step_is_the_clean_sample() -> None:
    x0 = normal(1, 5)
    mean, variance = q_posterior(DDPM, x0, normal(1, 5, seed=1), torch.tensor([0]))
    assert torch.allclose(mean, x0, rtol=1e-12)
    assert variance.item() == 0


def test_posterior_mean_is_the_ddpm_mean_of_the_noise() -> None:
    # mu = (x_t - beta / sqrt(1 - ab) eps) / sqrt(alpha), Ho et al. eq. 11
    t, x_t, eps = 300, normal(1, 5), normal(1, 5, seed=1)
    beta, alpha_bar = DDPM.betas[t].item(), DDPM.alpha_bars[t]
    mean, _ = q_posterior(DDPM, x0_from_eps(eps, x_t, alpha_bar), x_t, torch.tensor([t]))
    assert torch.allclose(
        mean, (x_t - beta / (1 - alpha_bar) ** 0.5 * eps) / (1 - beta) ** 0.5, rtol=1e-10
    )


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_predictions_of_every_type_carry_the_same_noise_and_sample(
    prediction_type: PredictionType, t: int
) -> None:
    x0, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    alpha_bar = DDPM.alpha_bars[t]
    x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
    got_eps, got_x0 = eps_and_x0(
        prediction_from(eps, x0, alpha_bar, prediction_type), x_t, alpha_bar, prediction_type
    )
    assert torch.allclose(got_eps, eps, atol=1e-10)
    assert torch.allclose(got_x0, x0, atol=1e-10)


def test_noise_and_sample_conversions_are_inverse() -> None:
    x_t, eps = normal(2, 7), normal(2, 7, seed=1)
    assert torch.allclose(eps_from_x0(x0_from_eps(eps, x_t, 0.3), x_t, 0.3), eps, atol=1e-14)


def test_v_has_the_norm_of_a_rotation() -> None:
    eps, x0, alpha_bar = normal(1, 9), normal(1, 9, seed=1), 0.3
    x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
    v = v_from_eps_x0(eps, x0, alpha_bar)
    assert (v.square() + x_t.square()).sum().item() == pytest.approx(
        (eps.square() + x0.square()).sum().item()
    )


def test_prior_kl_of_ddpm_is_two_hundred_thousandths_nats() -> None:
    assert prior_kl(DDPM, torch.ones(1, 3, 4, 4)).item() == pytest.approx(2.0e-5, rel=0.02)


def test_prior_kl_is_that_of_two_normals() -> None:
    x0, alpha_bar = normal(4, 6), DDPM.alpha_bars[-1]
    posterior = torch.distributions.Normal(alpha_bar**0.5 * x0, (1 - alpha_bar) ** 0.5)
    expected = torch.distributions.kl_divergence(
        posterior, torch.distributions.Normal(torch.zeros_like(x0), 1.0)
    )
    assert torch.allclose(prior_kl(DDPM, x0), expected.mean(dim=1), atol=1e-12)


def test_plain_weights_are_one() -> None:
    assert torch.equal(loss_weights(DDPM, torch.tensor([0, 999])), torch.ones(2))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_the_same_error_alike_in_every_prediction_type(
    prediction_type: PredictionType,
) -> None:
    # An error d in x_0 is sqrt(SNR) d in eps and sqrt(SNR + 1) d in v.
    t = torch.arange(1000)
    snr = DDPM.alphas_cumprod / (1 - DDPM.alphas_cumprod)
    squared_error = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[prediction_type]
    weights = loss_weights(DDPM, t, prediction_type, "min_snr")
    assert torch.allclose((weights * squared_error).float(), snr.clamp(max=5).float(), rtol=1e-5)


def oracle(x0: Tensor, prediction_type: PredictionType, offset: float = 0.0) -> Predictor:
    """A predictor that knows x_0 and is wrong by a constant."""

    def predict(x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        alpha_bar = DDPM.alphas_cumprod[t].to(x_t.dtype).view(-1, 1)
        return (
            prediction_from(eps_from_x0(x0, x_t, alpha_bar), x0, alpha_bar, prediction_type)
            + offset
        )

    return predict


@pytest.mark.parametrize("prediction_type", TYPES)
def test_loss_of_the_oracle_is_nothing(prediction_type: PredictionType) -> None:
    x0 = normal(16, 8)
    losses = diffusion_loss(
        oracle(x0, prediction_type),
        x0,
        Context(),
        DDPM,
        torch.Generator().manual_seed(0),
        prediction_type,
    )
    assert losses.shape == (16,)
    assert losses.max().item() < 1e-10


@pytest.mark.parametrize("prediction_type", TYPES)
def test_loss_is_the_mean_squared_error_of_each_sample(prediction_type: PredictionType) -> None:
    x0, generator = normal(16, 8), torch.Generator().manual_seed(0)
    losses = diffusion_loss(
        oracle(x0, prediction_type, 0.5), x0, Context(), DDPM, generator, prediction_type
    )
    assert torch.allclose(losses.double(), torch.full((16,), 0.25, dtype=torch.float64), atol=1e-5)


def test_loss_is_weighted_per_sample() -> None:
    x0 = normal(64, 4)
    plain, weighted = (
        diffusion_loss(
            oracle(x0, "eps", 0.5),
            x0,
            Context(),
            DDPM,
            torch.Generator().manual_seed(0),
            "eps",
            weighting,
        )
        for weighting in ("plain", "min_snr")
    )
    t = torch.randint(1000, (64,), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        weighted / plain, loss_weights(DDPM, t, "eps", "min_snr").double(), rtol=1e-5
    )


def test_loss_depends_on_the_generator_alone() -> None:
    x0 = normal(8, 4).float()
    first, second, other = (
        diffusion_loss(lambda x, t, c: x, x0, Context(), DDPM, torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_loss_of_a_bfloat16_network_is_float32() -> None:
    x0 = torch.zeros(4, 3)
    losses = diffusion_loss(
        lambda x, t, c: x.bfloat16(), x0, Context(), DDPM, torch.Generator().manual_seed(0)
    )
    assert losses.dtype == torch.float32


def test_loss_draws_timesteps_uniformly() -> None:
    seen = []
    diffusion_loss(
        lambda x, t, c: seen.append(t) or x,
        torch.zeros(20_000, 1),
        Context(),
        DDPM,
        torch.Generator().manual_seed(0),
    )
    counts = torch.bincount(seen[0] // 100, minlength=10)
    assert counts.shape == (10,)
    assert bool(((counts - 2000).abs() < 4 * math.sqrt(20_000 * 0.1 * 0.9)).all())


def test_prediction_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"returned \[4, 6\] for an input of \[4, 3\]"):
        diffusion_loss(
            lambda x, t, c: torch.cat([x, x], 1),
            torch.zeros(4, 3),
            Context(),
            DDPM,
            torch.Generator().manual_seed(0),
        )


def test_timesteps_are_drawn_with_their_probabilities() -> None:
    schedule = schedules.rdm().build()
    probabilities = torch.zeros(1000, dtype=torch.float64)
    probabilities[[3, 700]] = torch.tensor([0.25, 0.75], dtype=torch.float64)
    t, noise = draw_noise(
        torch.zeros(4000, 1), schedule, torch.Generator().manual_seed(0), probabilities
    )
    assert set(t.tolist()) == {3, 700}
    assert (t == 700).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
