from __future__ import annotations

import pytest
import torch
from torch import nn

from rdm.models.first_stage.losses import (
    adaptive_weight,
    last_layer_gradient,
    mean_absolute_error,
    root_mean_squared_error,
    scaled_and_turned,
    standard_normal_divergence,
    with_gradient,
)


def test_pixel_errors_are_taken_picture_by_picture() -> None:
    images = torch.zeros(2, 3, 4, 4)
    other = images.clone()
    other[1, :, :2] = 0.5
    assert mean_absolute_error(images, other).tolist() == [0, 0.25]
    assert root_mean_squared_error(images, other).tolist() == pytest.approx(
        [1e-3, (0.125 + 1e-6) ** 0.5]
    )


def test_a_perfect_reconstruction_has_a_finite_gradient() -> None:
    decoded = torch.zeros(1, 3, 4, 4, requires_grad=True)
    root_mean_squared_error(torch.zeros(1, 3, 4, 4), decoded).sum().backward()
    assert decoded.grad is not None
    assert not decoded.grad.any()


def test_divergence_of_known_posteriors() -> None:
    zeros = torch.zeros(1, 2, 1, 1)
    assert standard_normal_divergence(zeros, zeros).item() == 0
    assert standard_normal_divergence(zeros + 2, zeros).item() == 2  # half the squared mean
    variance = torch.tensor(0.25)
    expected = 0.5 * (variance - 1 - variance.log()).item()
    assert standard_normal_divergence(zeros, zeros + variance.log()).item() == pytest.approx(
        expected
    )


def test_the_adaptive_weight_is_the_ratio_of_the_gradients() -> None:
    assert adaptive_weight(
        torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    ).item() == pytest.approx(2.5)


def test_the_adaptive_weight_is_bounded_where_the_discriminator_says_nothing() -> None:
    assert adaptive_weight(torch.ones(9), torch.zeros(9)).item() == 1e4


def test_the_last_layers_gradient_is_autograds() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(5, 3, 3, padding=1), torch.randn(2, 5, 6, 7)
    outputs = layer(inputs)
    weights = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad((outputs * weights).sum(), layer.weight)
    assert torch.allclose(last_layer_gradient(layer, inputs, weights), expected, atol=1e-5)


def test_a_scalar_can_have_a_given_value_and_a_given_gradient() -> None:
    at, gradient = torch.randn(3, requires_grad=True), torch.tensor([1.0, -2.0, 3.0])
    found = with_gradient(torch.tensor(7.0), at, gradient)
    found.backward()
    assert found.item() == 7
    assert at.grad is not None
    assert torch.equal(at.grad, gradient)


def test_latents_and_pictures_scale_and_turn_alike() -> None:
    latents = torch.arange(16.0).view(1, 1, 4, 4)
    images = latents.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(1, 3, 16, 16)
    scaled, pictures = scaled_and_turned(latents, images, scale=0.5, quarter_turns=1)
    assert scaled.shape == (1, 1, 2, 2)
    assert pictures.shape == (1, 3, 8, 8)
    assert torch.equal(
        scaled, torch.rot90(scaled_and_turned(latents, images, 0.5, 0)[0], 1, (-2, -1))
    )


def test_whole_scale_without_a_turn_changes_nothing() -> None:
    latents, images = torch.randn(2, 4, 3, 3), torch.randn(2, 3, 12, 12)
    same = scaled_and_turned(latents, images, scale=1.0, quarter_turns=4)
    assert torch.equal(same[0], latents)
    assert torch.equal(same[1], images)


def test_a_turned_picture_belongs_to_its_turned_latent() -> None:
    images = torch.rand(1, 3, 8, 8)
    latents = torch.nn.functional.avg_pool2d(images, 4)  # a linear encoder that knows no direction
    for turns in range(4):
        turned, pictures = scaled_and_turned(latents, images, scale=1.0, quarter_turns=turns)
        assert torch.allclose(torch.nn.functional.avg_pool2d(pictures, 4), turned, atol=1e-6)
