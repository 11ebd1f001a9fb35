"""The trained part of the embedded encoder: two projection heads over frozen features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rdm.config import Config
from rdm.encoders.image_tower import FEATURE_PARTS, NUM_CLASSES
from rdm.encoders.text_tower import HIDDEN_DIM
from rdm.errors import ModelError

ImagePart = Literal["average", "maximum", "middle"]


class HeadsConfig(Config):
    """The shape of the two heads."""

    image_tower: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    text_tower: Literal["minilm-l6-v2"] = "minilm-l6-v2"
    image_parts: tuple[ImagePart, ...] = ("average", "maximum", "middle")
    """Which poolings of the image tower the head reads."""
    text_layers: tuple[int, ...] = (6,)
    """Which hidden states of the text tower are pooled and concatenated."""
    hidden_dim: int = 1024
    """Width of each head's hidden layer."""
    embedding_dim: int = 512
    dropout: float = 0.3
    """Dropout at the input and after the hidden layer, during training only."""
    class_names: bool = True
    """Whether an image embedding also gets the text embedding of what the image tower's classifier sees."""

    @property
    def image_dim(self) -> int:
        """The length of the features that the image head reads."""
        return sum(FEATURE_PARTS[part] for part in self.image_parts)

    @property
    def text_dim(self) -> int:
        """The length of the features that the text head reads."""
        return HIDDEN_DIM * len(self.text_layers)


class LiteHeads(nn.Module):
    """Projections of frozen image and text features into one space.

    With `class_names`, an image's embedding is `image_head(features) + gain * text_head(sum_c p_c t_c)`, where `p_c` is
    the image tower's ImageNet probability of class c and `t_c` the text features of its name (the convex combination of
    Norouzi et al. 2014, ConSE, arXiv 1312.5650, as a second branch). It gives words for things that the captions of the
    training set never mention.
    """

    image_mean: Tensor
    image_std: Tensor
    text_mean: Tensor
    text_std: Tensor
    class_features: Tensor

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.image_head = ProjectionHead(config.image_dim, config.hidden_dim, config.embedding_dim, config.dropout)
        self.text_head = ProjectionHead(config.text_dim, config.hidden_dim, config.embedding_dim, config.dropout)
        self.register_buffer("image_mean", torch.zeros(config.image_dim))
        self.register_buffer("image_std", torch.ones(config.image_dim))
        self.register_buffer("text_mean", torch.zeros(config.text_dim))
        self.register_buffer("text_std", torch.ones(config.text_dim))
        self.register_buffer("class_features", torch.zeros(NUM_CLASSES if config.class_names else 0, config.text_dim))
        self.class_gain = nn.Parameter(torch.full((), 0.5), requires_grad=config.class_names)

    def embed_images(self, features: Tensor) -> Tensor:
        """Return raw embeddings [B, D] of image features [B, 3672] as `ImageTower` returns them."""
        parts = dict(zip(FEATURE_PARTS, features.float().split(list(FEATURE_PARTS.values()), dim=1), strict=True))
        selected = torch.cat([parts[name] for name in self.config.image_parts], dim=1)
        embeddings = self.image_head(((selected - self.image_mean) / self.image_std).clamp(-5, 5))
        if not self.config.class_names:
            return embeddings
        named = parts["logits"].softmax(dim=1) @ self.class_features
        return embeddings + self.class_gain * self.embed_texts(named)

    def embed_texts(self, features: Tensor) -> Tensor:
        """Return raw embeddings [B, D] of text features [B, 384 * layers] as `TextTower` returns them."""
        return self.text_head((features.float() - self.text_mean) / self.text_std)

    def set_statistics(self, image_features: Tensor, text_features: Tensor, class_features: Tensor) -> None:
        """Record means and deviations of image features [N, 3672] and text features [M, T], and the class names'."""
        parts = dict(zip(FEATURE_PARTS, image_features.float().split(list(FEATURE_PARTS.values()), dim=1), strict=True))
        selected = torch.cat([parts[name] for name in self.config.image_parts], dim=1)
        for name, values in (("image", selected), ("text", text_features.float())):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_std").copy_(values.std(0) + 1e-3)
        if self.config.class_names:
            self.class_features.copy_(class_features)


class ProjectionHead(nn.Module):
    """`LayerNorm(linear(x) + mlp(x))` of a normalized input: [B, I] -> [B, O]."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(in_dim)
        self.linear = nn.Linear(in_dim, out_dim)
        self.up = nn.Linear(in_dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, out_dim)
        self.norm_out = nn.LayerNorm(out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection; see the class."""
        x = self.dropout(self.norm_in(x))
        return self.norm_out(self.linear(x) + self.down(self.dropout(F.gelu(self.up(x)))))


def save_heads(heads: LiteHeads, directory: Path) -> None:
    """Write `heads.safetensors` (float16) and `config.json` into an existing directory."""
    state = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in heads.state_dict().items()}
    save_file(state, directory / "heads.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(heads.config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_heads(directory: Path) -> LiteHeads:
    """Return the heads of a directory in float32, frozen, without dropout.

    Raises:
        ModelError: a file is missing or damaged, or the two do not belong together.
    """
    fix = "train one with `rdm train --recipe clip-lite`, or reinstall retrieval-diffusion"
    try:
        config = HeadsConfig.model_validate(json.loads((directory / "config.json").read_text(encoding="utf-8")))
        heads = LiteHeads(config)
        heads.load_state_dict(load_file(directory / "heads.safetensors"))
    except (OSError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"the encoder's heads cannot be read: {error}", where=directory, fix=fix) from error
    return heads.requires_grad_(False).eval()
