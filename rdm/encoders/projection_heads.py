"""The trained part of the embedded encoder: two projection heads over frozen features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rdm.config import Config
from rdm.encoders.image_tower import FEATURE_PARTS, NUM_CLASSES
from rdm.encoders.text_tower import HIDDEN_DIM
from rdm.errors import ModelError

ImagePart = Literal["average", "maximum", "middle"]


class HeadsConfig(Config):
    """Sizes of the two heads, and the weight of the class names' part."""

    image_tower: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    text_tower: Literal["minilm-l6-v2"] = "minilm-l6-v2"
    image_parts: tuple[ImagePart, ...] = Field(
        default=("average", "maximum", "middle"),
        description="poolings of the image tower that the head reads",
    )
    text_layers: tuple[int, ...] = Field(
        default=(4, 5, 6),
        description="hidden states of the text tower that are pooled; 6, the last of all, "
        "has to come last",
    )
    hidden_dim: int = Field(default=512, ge=1, description="width of each head's hidden layer")
    embedding_dim: int = Field(
        default=512, ge=1, description="length of an embedding, both parts together"
    )
    dropout: float = Field(
        default=0.3, ge=0, lt=1, description="at the input and after the hidden layer, in training"
    )
    naming_dim: int = Field(
        default=128, ge=1, le=HIDDEN_DIM, description="length of the class names' part"
    )
    naming_weight: float = Field(
        default=0.6, ge=0, description="weight of the class names' cosine; the other has 1"
    )
    naming_temperature: float = Field(
        default=2.0, gt=0, description="divides the image tower's ImageNet logits"
    )

    @property
    def image_dim(self) -> int:
        """The length of the features that the image head reads."""
        return sum(FEATURE_PARTS[part] for part in self.image_parts)

    @property
    def text_dim(self) -> int:
        """The length of the features that the text head reads."""
        return HIDDEN_DIM * len(self.text_layers)


class LiteHeads(nn.Module):
    """Frozen features to one space of two parts: `[unit(learned), sqrt(weight) * unit(naming)]`.

    The learned part comes from contrastive training on captioned photographs. The naming part is
    not trained: an image's is `sum_c p_c t_c`, with `p_c` the image tower's ImageNet probability of
    class c and `t_c` the text tower's vector of its name; a text's is its own vector (Norouzi et
    al. 2014, ConSE, arXiv 1312.5650). It finds by name what the captions of the training set never
    mention.
    """

    image_mean: Tensor
    image_std: Tensor
    text_mean: Tensor
    text_std: Tensor
    naming_basis: Tensor
    class_directions: Tensor

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config

        learned_dim = config.embedding_dim - config.naming_dim
        self.image_head = ProjectionHead(
            config.image_dim, config.hidden_dim, learned_dim, config.dropout
        )
        self.text_head = ProjectionHead(
            config.text_dim, config.hidden_dim, learned_dim, config.dropout
        )

        # Fitted by `set_statistics`, not by gradients.
        self.register_buffer("image_mean", torch.zeros(config.image_dim))
        self.register_buffer("image_std", torch.ones(config.image_dim))
        self.register_buffer("text_mean", torch.zeros(config.text_dim))
        self.register_buffer("text_std", torch.ones(config.text_dim))
        self.register_buffer("naming_basis", torch.zeros(HIDDEN_DIM, config.naming_dim))
        self.register_buffer("class_directions", torch.zeros(NUM_CLASSES, config.naming_dim))

    def embed_images(self, features: Tensor) -> Tensor:
        """Return embeddings [B, D] of image features [B, 3672] as `ImageTower` returns them."""
        parts, selected = self._select(features)
        learned = self.image_head(((selected - self.image_mean) / self.image_std).clamp(-5, 5))
        probabilities = (parts["logits"] / self.config.naming_temperature).softmax(dim=1)
        return self._joined(learned, probabilities @ self.class_directions)

    def embed_texts(self, features: Tensor) -> Tensor:
        """Return embeddings [B, D] of text features [B, 384 * layers] from `TextTower`."""
        centered = features.float() - self.text_mean
        return self._joined(
            self.text_head(centered / self.text_std), centered[:, -HIDDEN_DIM:] @ self.naming_basis
        )

    def set_statistics(
        self, image_features: Tensor, text_features: Tensor, class_features: Tensor
    ) -> None:
        """Fit the buffers, which gradients do not train.

        Args:
            image_features: [N, 3672]; means and deviations come from here.
            text_features: [M, T], likewise.
            class_features: [1000, T], of the ImageNet class names; with the texts they span the
                naming part's basis.
        """
        # Means and deviations; the constant keeps a constant feature from dividing by zero.
        _, selected = self._select(image_features)
        for name, values in (("image", selected), ("text", text_features.float())):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_std").copy_(values.std(0) + 1e-3)

        # The naming basis: the main directions of class names and of as many sentences.
        last = class_features[:, -HIDDEN_DIM:].float()
        directions = F.normalize(last - last.mean(0), dim=1)
        sentences = F.normalize(
            (text_features.float() - self.text_mean)[: 3 * NUM_CLASSES, -HIDDEN_DIM:], dim=1
        )
        _, _, axes = torch.linalg.svd(torch.cat([directions, sentences]), full_matrices=False)

        self.naming_basis.copy_(axes[: self.config.naming_dim].T)
        self.class_directions.copy_(directions @ self.naming_basis)

    def _select(self, features: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return all parts of image features by name, and those that the head reads, joined."""
        sizes = list(FEATURE_PARTS.values())
        parts = dict(zip(FEATURE_PARTS, features.float().split(sizes, dim=1), strict=True))
        return parts, torch.cat([parts[name] for name in self.config.image_parts], dim=1)

    def _joined(self, learned: Tensor, naming: Tensor) -> Tensor:
        """Return both parts as one embedding whose cosine is their weighted mean."""
        weight = self.config.naming_weight**0.5
        return torch.cat(
            [F.normalize(learned.float(), dim=1), weight * F.normalize(naming.float(), dim=1)],
            dim=1,
        )


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
    state = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in heads.state_dict().items()
    }
    (directory / "heads.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
    (directory / "config.json").write_text(
        heads.config.model_dump_json(indent=2) + "\n", encoding="utf-8"
    )


def load_heads(directory: Path) -> LiteHeads:
    """Return the heads of a directory in float32, frozen, without dropout.

    Raises:
        ModelError: a file is missing or damaged, or the two do not belong together.
    """
    fix = "train one with `rdm train --recipe clip-lite`, or reinstall retrieval-diffusion"
    try:
        config = HeadsConfig.model_validate(
            json.loads((directory / "config.json").read_text(encoding="utf-8"))
        )
        heads = LiteHeads(config)
        heads.load_state_dict(load_file(directory / "heads.safetensors"))
    except (OSError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"the encoder's heads cannot be read: {error}", where=directory, fix=fix
        ) from error
    return heads.requires_grad_(False).eval()
