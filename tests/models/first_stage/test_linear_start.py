import pytest
import torch
from torch import Tensor

from rdm.models.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from rdm.models.first_stage.block_projection import BlockProjection, from_blocks, to_blocks
from rdm.models.first_stage.first_stage import FirstStage
from rdm.models.first_stage.linear_start import start_from_projection, start_problem


def smooth_pictures(count: int = 8, side: int = 32) -> Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(-1, 1)


def test_blocks_are_ordered_by_row_column_and_color() -> None:
    image = torch.arange(3 * 4 * 4).reshape(1, 3, 4, 4).float()
    blocks = to_blocks(image, 2)
    assert blocks.shape == (1, 2, 2, 12)
    assert blocks[0, 0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]


def test_blocks_go_back_to_the_same_picture() -> None:
    images = torch.rand(2, 3, 8, 12)
    assert torch.equal(from_blocks(to_blocks(images, 4), 4), images)


def test_blocks_of_a_picture_that_does_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="6x8 pixels cannot be cut into blocks of 4"):
        to_blocks(torch.zeros(1, 3, 8, 6), 4)


def test_projection_on_all_components_loses_nothing() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    projection = BlockProjection.fit(images, block=2, num_components=12)
    assert torch.allclose(projection.reconstruct(images), images, atol=1e-5)


def test_projection_loses_the_variance_of_the_components_it_leaves_out() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    full = BlockProjection.fit(images, block=2, num_components=12)
    half = BlockProjection.fit(images, block=2, num_components=6)
    lost = (half.reconstruct(images) - images).square().mean() * 12
    assert float(lost) == pytest.approx(float(full.std[6:].square().sum()), rel=0.01)


@pytest.mark.parametrize("channels", [(16, 24), (16, 32, 96), (16, 48, 64, 96)])
def test_latents_start_as_whitened_block_components(channels: tuple[int, ...]) -> None:
    config = AutoencoderConfig(block_out_channels=channels, sample_size=32)
    images = smooth_pictures()
    projection = BlockProjection.fit(images, block=config.factor)
    torch.manual_seed(0)
    model = build_autoencoder(config)
    start_from_projection(model, projection, images)
    latents = FirstStage(model, "start").encode(images)
    expected = (
        (to_blocks(images, config.factor) - projection.mean)
        @ projection.components
        / projection.std
    )
    # The norm's divisor depends a little on the picture: correlation is exact up to that, scale
    # within some percent.
    for channel in range(4):
        pair = torch.stack([latents[:, channel].flatten(), expected[..., channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.98
    assert float(latents.std()) == pytest.approx(float(expected.std()), rel=0.25)


def test_pictures_start_as_their_blocks_mean_colors() -> None:
    config = AutoencoderConfig(sample_size=32)
    images = smooth_pictures()
    torch.manual_seed(0)
    model = build_autoencoder(config)
    start_from_projection(model, BlockProjection.fit(images), images)
    stage = FirstStage(model, "start")
    # Twice doubled, bilinearly; the border is left out, where a convolution sees zeros.
    expected = torch.nn.functional.avg_pool2d(images, 4)
    for _ in range(2):
        expected = torch.nn.functional.interpolate(expected, scale_factor=2, mode="bilinear")
    difference = (stage.decode(stage.encode(images)) - expected)[..., 8:-8, 8:-8]
    assert float(difference.square().mean().sqrt()) < 0.1


@pytest.mark.parametrize(
    ("channels", "num_groups", "reason"),
    [
        ((16, 16, 96), 2, "must differ"),
        ((8, 32, 96), 1, "carry"),
        ((16, 32, 96), 4, "4 channels too small"),
    ],
)
def test_networks_without_room_are_refused_with_the_reason(
    channels: tuple[int, ...], num_groups: int, reason: str
) -> None:
    assert reason in str(start_problem(channels, 4, num_groups))


def test_projection_of_another_block_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 2 with 4 components do not fit"):
        start_from_projection(
            build_autoencoder(AutoencoderConfig()),
            BlockProjection.fit(smooth_pictures(), block=2),
            smooth_pictures(),
        )
