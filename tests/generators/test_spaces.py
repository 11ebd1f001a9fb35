from __future__ import annotations

import torch

from rdm.generators.spaces import LatentSpace, PixelSpace, TokenSpace
from rdm.models.first_stage.first_stage import load_autoencoder, to_uint8

ASSET = "assets://autoencoder-kl-f4"


def test_pixels_become_numbers_and_the_same_pixels_again() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    x0 = PixelSpace().to_model({"pixels": pixels}, None)
    assert (x0.min() >= -1, x0.max() <= 1, x0.dtype) == (True, True, torch.float32)
    assert (to_uint8(PixelSpace().to_pictures(x0)) == pixels.permute(0, 2, 3, 1).numpy()).all()


def test_the_middle_of_a_posterior_needs_no_generator() -> None:
    space = LatentSpace(load_autoencoder(ASSET), shift=0.5, scale=2.0)
    moments = torch.cat([torch.full((1, 4, 2, 2), 3.0), torch.zeros(1, 4, 2, 2)], dim=1)
    assert space.to_model({"moments": moments}, None).unique().tolist() == [5.0]
    drawn = space.to_model({"moments": moments}, torch.Generator().manual_seed(0))
    assert drawn.unique().numel() == 16


def test_shapes_follow_the_resolution() -> None:
    first_stage = load_autoencoder(ASSET)
    assert PixelSpace().shape(32) == (3, 32, 32)
    assert LatentSpace.of(first_stage).shape(64) == (4, 16, 16)
    assert TokenSpace(first_stage, 16).shape(64) == (256,)


def test_tokens_that_are_not_drawn_yet_are_row_0() -> None:
    first_stage = load_autoencoder("assets://autoencoder-vq-f4")
    space = TokenSpace(first_stage, 4)
    part, whole = torch.tensor([[5, 6, 7]]), torch.zeros(1, 16, dtype=torch.int64)
    whole[0, :3] = part
    assert torch.equal(space.to_pictures(part), space.to_pictures(whole))
