"""Distances of pictures in the features of a frozen network (Zhang et al. 2018, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.encoders.image_tower import PIXEL_MEAN, PIXEL_STD, ImageTower, load_image_tower
from rdm.errors import ModelError
from rdm.models.checkpoint_file import read_checkpoint

EMBEDDED = "embedded"
_VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and standard deviation per color, for pictures in [-1, 1], as LPIPS has them.
_VGG_MEAN = (-0.030, -0.088, -0.188)
_VGG_STD = (0.458, 0.448, 0.450)


class TowerFeatures(nn.Module):
    """The last feature map of each resolution of the embedded tower, EfficientNet-Lite0.

    Distances in it are not LPIPS: another network, and no weights learned from people's judgements.
    """

    description = "EfficientNet-Lite0 features of five depths, uniform weights; not LPIPS"

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps [B, C, h, w] of pictures float [B, 3, H, W] in [-1, 1].

        Gradients pass through.
        """
        return self.tower.feature_maps(((images + 1) * 127.5 - PIXEL_MEAN) / PIXEL_STD)


class VggFeatures(nn.Module):
    """VGG-16's activations before each pooling, as LPIPS takes them.

    The state dict is that of torchvision's `vgg16().features`.
    """

    description = "VGG-16 features of five depths"

    def __init__(self) -> None:
        super().__init__()

        # The layers in torchvision's order, so that its weights fit by number.
        layers: list[nn.Module] = []
        before = 3
        for widths in _VGG_WIDTHS:
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))

        self.features = nn.Sequential(*layers)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """See TowerFeatures."""
        mean, std = images.new_tensor(_VGG_MEAN), images.new_tensor(_VGG_STD)
        x = (images - mean[:, None, None]) / std[:, None, None]

        maps: list[Tensor] = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            # The last map is before the last pooling, which is skipped.
            x = layer(x) if len(maps) < len(_VGG_WIDTHS) else x
        return maps


class PerceptualDistance(nn.Module):
    """The distance of two pictures in the features of a frozen network.

    Attributes:
        network: pictures to feature maps.
        weights: w_l of each depth, [C] and not negative; None: uniform.
        enlargement: pictures are enlarged so many times (bilinear) before the network sees them.
        description: the network and weights, for reports.
    """

    def __init__(
        self,
        network: TowerFeatures | VggFeatures,
        weights: Sequence[Tensor] | None = None,
        enlargement: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.enlargement = enlargement
        self.weights = None if weights is None else [weight.clone() for weight in weights]
        self.description = (
            network.description if weights is None else "LPIPS, VGG-16 with learned weights"
        )
        self.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance of each pair, float32 [B], of pictures float [B, 3, H, W] in [-1, 1].

        It is symmetric, and exactly 0 of equal pictures. Gradients pass to both.
        """
        # In float32: squares of small differences vanish in 16 bits.
        with torch.autocast(first.device.type, enabled=False):
            maps = [self.network(self._enlarged(images.float())) for images in (first, second)]
            return feature_distance(maps[0], maps[1], self.weights)

    def _enlarged(self, images: Tensor) -> Tensor:
        if self.enlargement == 1:
            return images
        return nn.functional.interpolate(images, scale_factor=self.enlargement, mode="bilinear")


def feature_distance(
    first: Sequence[Tensor], second: Sequence[Tensor], weights: Sequence[Tensor] | None
) -> Tensor:
    """Return sum_l mean_hw |w_l (y_l - y'_l)|^2 over unit features (Zhang et al. 2018, eq. 1).

    Args:
        first: feature maps [B, C_l, h_l, w_l].
        second: likewise.
        weights: squares of w_l, [C_l] each, as LPIPS stores them; None: ones.
    """
    total = first[0].new_zeros(len(first[0]))
    for depth, (one, other) in enumerate(zip(first, second, strict=True)):
        squares = (_unit(one) - _unit(other)).square()
        if weights is not None:
            squares = squares * weights[depth].to(squares)[:, None, None]
        total = total + squares.sum(1).mean((1, 2))
    return total


def open_perceptual(
    network: str = EMBEDDED, heads: str | None = None, enlargement: int = 1
) -> PerceptualDistance:
    """Return the distance in a network's features.

    Args:
        network: `embedded`, or a file of VGG-16's weights with torchvision's names.
        heads: a file of LPIPS's learned weights for VGG-16, `lin0.model.1.weight` to `lin4...`;
            None: uniform weights.
        enlargement: pictures are enlarged so many times before the network sees them.

    Raises:
        MissingDependencyError: the embedded tower's wheels are not installed.
        ModelError: a file does not exist, or does not hold these weights.
    """
    # The embedded tower needs no file, and has no learned weights.
    if network == EMBEDDED:
        if heads is not None:
            raise ModelError(
                "LPIPS's learned weights belong to VGG-16, not to the embedded tower",
                where=heads,
                fix="set perceptual.network to a file of VGG-16's weights, or "
                "perceptual.heads=null",
            )
        return PerceptualDistance(TowerFeatures(load_image_tower()), None, enlargement)

    return PerceptualDistance(
        _open_vgg(Path(network)), None if heads is None else _open_heads(Path(heads)), enlargement
    )


def _open_vgg(path: Path) -> VggFeatures:
    """Open VGG-16's convolutions from a file of torchvision's whole network."""
    vgg = VggFeatures()
    state = _read(
        path,
        "VGG-16's weights",
        "torchvision's vgg16-397923af.pth, or its state dict as safetensors",
    )

    # The classifier, which is most of the file, is left out.
    try:
        vgg.load_state_dict(
            {name: value for name, value in state.items() if name.startswith("features.")}
        )
    except RuntimeError as error:
        raise ModelError(
            "these are not VGG-16's weights with torchvision's names",
            where=path,
            fix="give torchvision's vgg16-397923af.pth, or its state dict as safetensors",
        ) from error

    return vgg


def _open_heads(path: Path) -> list[Tensor]:
    """Open LPIPS's weights of each depth, [C] each."""
    state = _read(path, "LPIPS's learned weights", "weights/v0.1/vgg.pth of the package lpips")
    heads = [state.get(f"lin{depth}.model.1.weight") for depth in range(len(_VGG_WIDTHS))]
    found = [head.flatten().float() for head in heads if head is not None]
    if [len(head) for head in found] != [widths[-1] for widths in _VGG_WIDTHS]:
        raise ModelError(
            "these are not LPIPS's learned weights for VGG-16",
            where=path,
            fix="give weights/v0.1/vgg.pth of the package lpips",
        )
    return found


def _read(path: Path, what: str, file: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(
            f"there is no file of {what}",
            where=path,
            fix=f"download {file}, and name the file; or set perceptual.network=embedded",
        )
    return read_checkpoint(path)


def _unit(features: Tensor) -> Tensor:
    """Return features of unit length at each place."""
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
