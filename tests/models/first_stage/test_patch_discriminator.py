from __future__ import annotations

import pytest
import torch

from rdm.models.first_stage.patch_discriminator import (
    PatchDiscriminator,
    discriminator_hinge_loss,
    generator_hinge_loss,
    smallest_side,
)


@pytest.mark.parametrize(("num_layers", "side"), [(2, 34), (3, 70)])
def test_a_judgement_is_of_a_patch(num_layers: int, side: int) -> None:
    torch.manual_seed(0)
    layers = [
        layer
        for layer in PatchDiscriminator(8, num_layers).layers
        if not isinstance(layer, torch.nn.GroupNorm)
    ]
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    judged = torch.nn.Sequential(*layers)(image)
    judged[0, 0, judged.shape[2] // 2, judged.shape[3] // 2].backward()
    assert image.grad is not None
    seen = image.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert int(seen[-1] - seen[0]) + 1 == side


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_smallest_picture_gives_a_judgement_and_a_smaller_one_does_not(num_layers: int) -> None:
    side, tested = smallest_side(num_layers), PatchDiscriminator(8, num_layers)
    assert tested(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        tested(torch.zeros(1, 3, side - 2**num_layers, side - 2**num_layers))


def test_a_picture_is_judged_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    tested, images = PatchDiscriminator(8, 2), torch.randn(4, 3, 32, 32)
    assert torch.allclose(tested(images)[2:3], tested(images[2:3]), atol=1e-6)


def test_it_has_no_state_beside_its_parameters() -> None:
    assert not list(PatchDiscriminator(8, 2).buffers())


def test_hinge_losses_of_known_judgements() -> None:
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([-3.0, 1.0])
    assert discriminator_hinge_loss(real, fake).item() == 0.5 * (0.5 + 1.0)
    assert generator_hinge_loss(fake).item() == 1.0
