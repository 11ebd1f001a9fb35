from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from rdm.errors import ModelError
from rdm.models.first_stage.perceptual import (
    PerceptualDistance,
    VggFeatures,
    feature_distance,
    open_perceptual,
)


@pytest.fixture(scope="module")
def embedded() -> PerceptualDistance:
    return open_perceptual()


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-16's weights with torchvision's names, random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = {
        f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()
    }
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, path)
    return path


@pytest.fixture(scope="module")
def heads_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LPIPS's learned weights: only the second depth counts, fourfold."""
    path = tmp_path_factory.mktemp("heads") / "vgg.safetensors"
    widths = (64, 128, 256, 512, 512)
    save_file(
        {
            f"lin{d}.model.1.weight": torch.full((1, w, 1, 1), 4.0 * (d == 1))
            for d, w in enumerate(widths)
        },
        path,
    )
    return path


def pictures(seed: int = 0, side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_distance_of_known_features() -> None:
    first = [torch.tensor([[[[3.0]], [[4.0]]]])]
    second = [torch.tensor([[[[0.0]], [[9.0]]]])]
    assert feature_distance(first, second, None).item() == pytest.approx(0.6**2 + 0.2**2)
    assert feature_distance(first, second, [torch.tensor([1.0, 0.0])]).item() == pytest.approx(0.36)


def test_equal_pictures_have_distance_zero(embedded: PerceptualDistance, vgg_file: Path) -> None:
    for tested in (embedded, open_perceptual(str(vgg_file))):
        assert tested(pictures(), pictures()).tolist() == [0, 0]


def test_the_distance_is_symmetric_and_grows_with_the_difference(
    embedded: PerceptualDistance,
) -> None:
    first, second = pictures(0), pictures(1)
    assert torch.equal(embedded(first, second), embedded(second, first))
    near = embedded(first, first + 0.05 * second)
    assert bool((near > 0).all())
    assert bool((near < embedded(first, second)).all())


def test_the_embedded_tower_gives_a_map_of_each_resolution(embedded: PerceptualDistance) -> None:
    shapes = [tuple(found.shape[1:]) for found in embedded.network(pictures(side=64))]
    assert shapes == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]


def test_gradients_pass_to_the_pictures_and_to_nothing_else(embedded: PerceptualDistance) -> None:
    decoded = pictures(1).requires_grad_()
    embedded(pictures(0), decoded).sum().backward()
    assert decoded.grad is not None
    assert bool(decoded.grad.abs().sum((1, 2, 3)).gt(0).all())
    assert not any(parameter.requires_grad for parameter in embedded.parameters())


def test_autocast_does_not_reach_the_features(embedded: PerceptualDistance) -> None:
    expected = embedded(pictures(0), pictures(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedded(pictures(0), pictures(1)), expected)


def test_it_says_that_it_is_not_lpips(embedded: PerceptualDistance) -> None:
    assert "not LPIPS" in embedded.description


def test_vgg_features_are_torchvisions_activations_before_each_pooling(vgg_file: Path) -> None:
    layers = make_layers(cfgs["D"])
    state = torch.load(vgg_file, weights_only=True)
    layers.load_state_dict(
        {n.removeprefix("features."): v for n, v in state.items() if n.startswith("features.")}
    )
    x = (pictures() - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
        [0.458, 0.448, 0.450]
    )[:, None, None]
    expected = []
    with torch.no_grad():
        for number, layer in enumerate(layers):
            if number in (4, 9, 16, 23, 30):
                expected.append(x)
            x = layer(x)
        network = open_perceptual(str(vgg_file)).network
        assert isinstance(network, VggFeatures)
        found = network(pictures())
    assert [one.shape for one in found] == [other.shape for other in expected]
    assert all(
        torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True)
    )


def test_learned_weights_weigh_each_depth(vgg_file: Path, heads_file: Path) -> None:
    tested = open_perceptual(str(vgg_file), str(heads_file))
    maps = [tested.network(pictures(seed)) for seed in (0, 1)]
    second_depth = feature_distance([maps[0][1]], [maps[1][1]], None)
    assert torch.allclose(tested(pictures(0), pictures(1)), 4 * second_depth)
    assert tested.description.startswith("LPIPS")


def test_a_missing_file_says_what_to_download(tmp_path: Path, vgg_file: Path) -> None:
    with pytest.raises(ModelError) as caught:
        open_perceptual(str(tmp_path / "vgg16.pth"))
    assert "vgg16-397923af.pth" in caught.value.fix
    with pytest.raises(ModelError) as caught:
        open_perceptual(str(vgg_file), str(tmp_path / "vgg.pth"))
    assert "package lpips" in caught.value.fix


def test_other_weights_are_refused(tmp_path: Path, vgg_file: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelError, match="not VGG-16's weights"):
        open_perceptual(str(path))
    with pytest.raises(ModelError, match="not LPIPS's learned weights"):
        open_perceptual(str(vgg_file), str(path))


def test_learned_weights_do_not_belong_to_the_embedded_tower(heads_file: Path) -> None:
    with pytest.raises(ModelError, match="belong to VGG-16"):
        open_perceptual(heads=str(heads_file))


def test_enlarged_pictures_are_compared_as_the_network_sees_them(vgg_file: Path) -> None:
    first, second = pictures(0, 16), pictures(1, 16)
    enlarged = open_perceptual(str(vgg_file), enlargement=2)(first, second)
    larger = [
        nn.functional.interpolate(p, scale_factor=2, mode="bilinear") for p in (first, second)
    ]
    assert torch.equal(enlarged, open_perceptual(str(vgg_file))(*larger))
