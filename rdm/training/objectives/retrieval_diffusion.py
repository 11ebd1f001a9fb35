"""RDM's objective: noise prediction on latents, conditioned on neighbors' embeddings (Blattmann et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config
from rdm.context import Context
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.diffusion.heads import GaussianHead
from rdm.diffusion.schedules import ScheduleConfig
from rdm.diffusion.schedules import rdm as rdm_schedule
from rdm.errors import CacheError
from rdm.models.denoiser import Denoiser, DenoiserConfig, build_denoiser, rdm_tiny_denoiser
from rdm.models.first_stage import load_autoencoder
from rdm.sources.queryset import is_held_out
from rdm.training.cache import LatentCache
from rdm.training.objective import Objective, Shard


class ConditioningConfig(Config):
    """How neighbor embeddings become context tokens; training and sampling share it."""

    embedding: Literal["unit", "raw"] = Field(default="unit", description="unit vectors, or the encoder's own length")
    scale: float = Field(
        default=22.627417, gt=0, description="factor on the tokens; sqrt(512) gives unit vectors unit variance"
    )
    k_train: int = Field(default=4, ge=1, description="neighbors used of those stored")
    pool: int | None = Field(
        default=None,
        ge=1,
        description="the nearest neighbors that each training step draws k_train of, so that a small query set is not "
        "learned by heart from its neighbors; None: k_train, as the released recipe",
    )
    dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="probability of the null context (zero) for a sample; the released recipe has 0",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pool is not None and self.pool < self.k_train:
            raise ValueError(f"a pool of {self.pool} neighbors is smaller than k_train {self.k_train}")
        return self

    @property
    def num_loaded(self) -> int:
        """Neighbors that training loads per sample."""
        return self.k_train if self.pool is None else self.pool


class RetrievalDiffusionConfig(Config):
    """Configuration of the objective `retrieval-diffusion`."""

    kind: Literal["retrieval-diffusion"] = "retrieval-diffusion"
    denoiser: DenoiserConfig = Field(default_factory=rdm_tiny_denoiser)
    # rdm() is the released schedule: sqrt-linear 0.0015..0.0195.
    schedule: ScheduleConfig = Field(default_factory=rdm_schedule)
    prediction_type: Literal["eps", "v", "x0"] = "eps"
    weighting: Literal["plain", "min_snr"] = "plain"
    conditioning: ConditioningConfig = ConditioningConfig()
    held_out_fraction: float = Field(
        default=0.12, ge=0, lt=1, description="share of the query photographs kept for measuring"
    )

    def head(self) -> GaussianHead:
        """Return the decoding head of this configuration."""
        return GaussianHead(self.schedule.build(), self.prediction_type, self.weighting)


@dataclass(frozen=True)
class LatentData:
    """Latents with the embeddings of their neighbors: the part of a cache that trains, or the part that is held out."""

    cache: LatentCache
    database: RetrievalDatabase
    table: NeighborTable
    config: RetrievalDiffusionConfig
    held_out: bool = False

    @classmethod
    def open(cls, cache: str, database: str, config: RetrievalDiffusionConfig, *, held_out: bool = False) -> LatentData:
        """Open a cache with a database's neighbors of the same query set.

        Raises:
            CacheError: the database has no neighbors of this query set, or too few per crop.
        """
        opened = RetrievalDatabase.open(database)
        latents = LatentCache(cache)
        tables = [NeighborTable(opened.folder, name) for name in NeighborTable.names(opened.folder)]
        matching = [table for table in tables if table.info["queries_digest"] == latents.info["queries_digest"]]
        if not matching:
            raise CacheError(
                "the database has no neighbors of the query set that this cache was made from",
                where=cache,
                fix=f"rdm neighbors build --root {database} --queries SPEC --name NAME, with the same crops",
            )
        if (stored := matching[0].info["config"]["k_stored"]) < config.conditioning.num_loaded:
            raise CacheError(
                f"training takes {config.conditioning.num_loaded} neighbors, but {stored} are stored",
                where=database,
                fix="lower objective.conditioning.k_train or .pool, or build the neighbors again with a larger "
                "k_stored",
            )
        pinned = RetrievalDatabase.open(database, version=matching[0].info["database_version"])
        return cls(latents, pinned, matching[0], config, held_out)

    @property
    def shards(self) -> Sequence[Shard]:
        """See TrainingData."""
        return self._shards

    @cached_property
    def _shards(self) -> list[Shard]:
        return [Shard(stem, len(self._rows(stem))) for stem in self.cache.stems]

    def load_shard(self, index: int) -> dict[str, NDArray]:
        """Return `moments` float16 [N, 2C, H, W] and `neighbors` float16 [N, k, D] (unit, or raw by config).

        k is `conditioning.num_loaded` for training, and k_train, the nearest, for what is held out.
        """
        stem = self.cache.stems[index]
        rows = self._rows(stem)
        ids = self.neighbor_ids(stem)[rows]
        return {
            "moments": np.ascontiguousarray(self.cache.moments(stem)[rows]),
            "neighbors": condition(self.database, ids, self.config.conditioning),
        }

    def neighbor_ids(self, stem: str) -> NDArray[np.int64]:
        """Return the loaded neighbors [N, k] of every latent of a cache shard, nearest first."""
        keys, ids, _ = self.table.shard(stem)
        place = {key: row for row, key in enumerate(keys)}
        try:
            order = [place[key] for key in self.cache.rows(stem).column("key").to_pylist()]
        except KeyError as error:
            raise CacheError(
                f"the crop {error} has no neighbors",
                where=f"shard {stem}",
                fix="build the cache and the neighbors again from the same source",
            ) from error
        conditioning = self.config.conditioning
        return ids[order][:, : conditioning.k_train if self.held_out else conditioning.num_loaded]

    def image_ids(self, stem: str) -> list[str]:
        """Return the photograph of every latent that `load_shard` gives."""
        return self.cache.rows(stem).column("image_id").take(self._rows(stem)).to_pylist()

    def flipped(self, stem: str) -> list[bool]:
        """Return whether each of those latents is a mirror image."""
        return self.cache.rows(stem).column("flipped").take(self._rows(stem)).to_pylist()

    def _rows(self, stem: str) -> NDArray[np.int64]:
        images = self.cache.rows(stem).column("image_id").to_pylist()
        fraction = self.config.held_out_fraction
        return np.flatnonzero([is_held_out(image_id, fraction) == self.held_out for image_id in images])


def condition(database: RetrievalDatabase, ids: NDArray[np.int64], config: ConditioningConfig) -> NDArray[np.float16]:
    """Return the embeddings [..., D] that condition a network on neighbors [...], before `scale`."""
    unit = database.embeddings(ids)
    if config.embedding == "unit":
        return unit
    norms = database.patch_rows(ids).column("norm").to_numpy().reshape(*ids.shape, 1)
    return (unit.astype(np.float32) * norms).astype(np.float16)


def draw_neighbors(neighbors: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return k of each sample's neighbors [B, K, D] as [B, k, D], drawn without repetition; all of them where K = k."""
    if neighbors.shape[1] == k:
        return neighbors
    order = torch.rand(neighbors.shape[:2], generator=generator, device=neighbors.device).argsort(dim=1)[:, :k]
    return neighbors.gather(1, order[:, :, None].expand(-1, -1, neighbors.shape[2]))


class RetrievalDiffusionObjective(Objective):
    """E ||eps - eps_theta(z_t, t, {phi(y)})||^2 over latents z and uniform t, the neighbors entering by cross-
    attention.
    """

    def __init__(
        self, config: RetrievalDiffusionConfig, provenance: dict[str, Any], scaling: tuple[float, float]
    ) -> None:
        super().__init__()
        self.config = config
        self.provenance = provenance
        self.latent_shift, self.latent_scale = scaling
        self.head = config.head()
        self.denoiser: Denoiser = build_denoiser(config.denoiser)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See Objective. The posterior is sampled anew at every step."""
        mean, logvar = batch["moments"].float().chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        z = (mean + torch.exp(0.5 * logvar) * noise - self.latent_shift) * self.latent_scale
        conditioning = self.config.conditioning
        neighbors = draw_neighbors(batch["neighbors"], conditioning.k_train, generator)
        tokens = Context(tokens=neighbors.float() * conditioning.scale)
        context = tokens.dropped({"tokens": conditioning.dropout}, generator)
        return {"loss": self.head.loss(self.denoiser, z, context, generator).mean()}

    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """See Objective: `denoiser/` opens with diffusers' `from_pretrained`; `model.json` holds the rest."""
        exported = build_denoiser(self.config.denoiser)
        exported.load_state_dict({name.removeprefix("denoiser."): value for name, value in state.items()})
        exported.unet.save_pretrained(str(directory / "denoiser"), safe_serialization=True)
        write_info(directory, model_info(self.config, self.provenance))


def model_info(config: RetrievalDiffusionConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a model: its objective, and what it was trained with."""
    return {"format": "retrieval-diffusion-model", "objective": config.model_dump(mode="json"), **provenance}


def write_info(directory: Path, info: Mapping[str, Any]) -> None:
    """Write a model's description, `model.json`."""
    (directory / "model.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def open_training(
    cache: str, database: str, config: RetrievalDiffusionConfig
) -> tuple[LatentData, RetrievalDiffusionObjective]:
    """Return the training data and the objective of a cache and a database.

    Raises:
        CacheError: the cache belongs to another first stage, another query set, or to latents of another shape.
    """
    data = LatentData.open(cache, database, config)
    first_stage = load_autoencoder(data.cache.config.autoencoder)
    if first_stage.digest != data.cache.info["autoencoder_digest"]:
        raise CacheError("the latents were made by another first stage", where=cache, fix="build the cache again")
    if first_stage.latent_channels != config.denoiser.in_channels:
        raise CacheError(
            f"the latents have {first_stage.latent_channels} channels, the denoiser takes "
            f"{config.denoiser.in_channels}",
            where=cache,
            fix="set objective.denoiser.in_channels",
        )
    if data.database.version.embedding_dim != config.denoiser.cross_attention_dim:
        raise CacheError(
            f"embeddings have {data.database.version.embedding_dim} dimensions, the denoiser reads "
            f"{config.denoiser.cross_attention_dim}",
            where=database,
            fix="set objective.denoiser.cross_attention_dim",
        )
    provenance = {
        "autoencoder": data.cache.config.autoencoder,
        "autoencoder_digest": first_stage.digest,
        "resolution": data.cache.config.resolution,
        "encoder": data.database.encoder_name,
        "encoder_digest": data.database.encoder_digest,
        "database": {"version": data.database.version.number, "source": data.database.version.source},
        "queries_digest": data.cache.info["queries_digest"],
    }
    return data, RetrievalDiffusionObjective(config, provenance, (first_stage.shift, first_stage.scale))
