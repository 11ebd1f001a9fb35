"""The variational bound against exact values of normal data, N(0.7, 0.3^2), without a trained
network.

Every term but the discrete decoder is a quadratic of x_0 and of the noise, whose means the two
points +-1 give exactly.
"""

from __future__ import annotations

import math

import pytest
import torch
from exact_predictors import MEAN, STD, normal_predictor
from torch import Tensor

from rdm.diffusion.bound import Bound, bits_per_dim, variational_bound
from rdm.diffusion.gaussian import FixedVariance
from rdm.diffusion.samplers import Denoiser
from rdm.diffusion.schedules import NoiseSchedule, ScheduleConfig, ddpm_linear, rdm

ENTROPY = 0.5 * math.log(2 * math.pi * math.e * STD**2)  # 0.214966
DATA = MEAN + STD * torch.tensor([[-1.0], [-1.0], [1.0], [1.0]], dtype=torch.float64)
NOISE = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)
LINEAR, RDM = ddpm_linear().build(), rdm().build()


def bound_of(schedule: NoiseSchedule, variance: FixedVariance) -> Bound:
    return variational_bound(
        Denoiser(normal_predictor(schedule), schedule), DATA, lambda t: NOISE, variance
    )


@pytest.mark.parametrize(
    ("schedule", "variance", "nats"),
    [
        (LINEAR, "beta", 0.218711),
        (LINEAR, "posterior", 0.773804),
        (RDM, "beta", 0.219030),
        (RDM, "posterior", 0.618840),
    ],
)
def test_the_bound_has_its_exact_value(
    schedule: NoiseSchedule, variance: FixedVariance, nats: float
) -> None:
    assert bound_of(schedule, variance).total.mean().item() == pytest.approx(nats, abs=1e-5)


def test_the_bound_in_bits_of_pixels() -> None:
    bits = [
        bits_per_dim(bound_of(LINEAR, variance).total).mean().item()
        for variance in ("beta", "posterior")
    ]
    assert bits == pytest.approx([7.3099, 8.1107], abs=1e-4)


def test_the_bound_is_above_the_entropy_and_is_the_sum_of_its_terms() -> None:
    bound = bound_of(LINEAR, "beta")
    assert bound.steps.shape == (999, 4)
    assert bound.total.mean() > ENTROPY
    parts = bound.prior.sum() + bound.steps.sum() + bound.decoder.sum()
    assert bound.total.sum().item() == pytest.approx(parts.item(), abs=1e-9)


def test_the_posterior_variance_leaves_no_divergence_where_the_guess_is_right() -> None:
    schedule = ScheduleConfig(num_timesteps=10).build()

    def knows(x_t: Tensor, t: Tensor, context: object) -> Tensor:
        return DATA

    bound = variational_bound(
        Denoiser(knows, schedule, prediction_type="x0"), DATA, lambda t: NOISE
    )
    assert bound.steps.abs().max().item() < 1e-12


def test_a_discrete_decoder_gives_probabilities_that_sum_to_one() -> None:
    schedule = ScheduleConfig(num_timesteps=2, beta_start=0.01, beta_end=0.02).build()
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]

    def says(x_t: Tensor, t: Tensor, context: object) -> Tensor:
        return torch.full_like(x_t, 0.9)

    denoise = Denoiser(says, schedule, prediction_type="x0")
    bound = variational_bound(
        denoise, values, lambda t: torch.zeros_like(values), "beta", discrete=True
    )
    assert torch.exp(-bound.decoder).sum().item() == pytest.approx(1, abs=1e-6)


def test_a_fine_discrete_decoder_agrees_with_the_density() -> None:
    values = torch.tensor([[0.2], [0.25]], dtype=torch.float64)
    schedule = ScheduleConfig(num_timesteps=2, beta_start=0.01, beta_end=0.02).build()

    def says(x_t: Tensor, t: Tensor, context: object) -> Tensor:
        return torch.full_like(x_t, 0.22)

    denoise = Denoiser(says, schedule, prediction_type="x0")
    found = [
        variational_bound(
            denoise, values, lambda t: torch.zeros_like(values), "beta", discrete=discrete
        ).decoder
        for discrete in (True, False)
    ]
    assert torch.allclose(bits_per_dim(found[0], discrete=True), bits_per_dim(found[1]), atol=1e-3)
