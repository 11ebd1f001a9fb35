"""What retrieval recipes train on: cached latents with their neighbors' embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config, digest_json
from rdm.context import Context
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.errors import CacheError
from rdm.models.first_stage.first_stage import FirstStage, load_autoencoder
from rdm.sources.query_set import is_held_out
from rdm.training.data.cache_neighbors import ids_of_crops, refuse_unusable, table_of
from rdm.training.data.inlined_neighbors import InlinedNeighbors, is_inlined
from rdm.training.data.latent_cache import LatentCache
from rdm.training.data.training_data import Shard

_EXPONENT_BITS = np.uint16(0x7C00)  # all set: a float16 that is infinite or not a number
_NUM_READERS = 16


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
    k_choices: tuple[int, ...] = Field(
        default=(),
        description="numbers of neighbors that training steps draw from, so that sampling may take any of them; none: "
        "k_train at every step",
    )
    mean_vector: bool = Field(
        default=False,
        description="the mean of the tokens is the context's vector too, for a network with a vector_dim",
    )
    dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="probability of the null context (zero) for a sample; the released recipe has 0; 1: no neighbors "
        "at all, the unconditional baseline of the same network",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        most = max(self.k_train, *self.k_choices, 0)
        if self.pool is not None and self.pool < most:
            raise ValueError(f"a pool of {self.pool} neighbors is smaller than k_train or k_choices, {most}")
        if any(k < 1 for k in self.k_choices):
            raise ValueError(f"k_choices are 1 or more, not {self.k_choices}")
        return self

    @property
    def unconditional(self) -> bool:
        """Whether no sample ever sees neighbors: the LDM baseline."""
        return self.dropout == 1

    @property
    def num_loaded(self) -> int:
        """Neighbors that training loads per sample."""
        return max(self.k_train, *self.k_choices, 0) if self.pool is None else self.pool


class RetrievalConfig(Protocol):
    """What the data of a retrieval recipe depend on."""

    @property
    def conditioning(self) -> ConditioningConfig:
        """How neighbors condition."""
        ...

    @property
    def held_out_fraction(self) -> float:
        """Share of the query photographs kept for measuring."""
        ...


@dataclass(frozen=True)
class _ShardRows:
    """Which latents of a shard are used [N], and the place of each one's crop [N] among the shard's distinct crops."""

    rows: NDArray[np.int64]
    crops: NDArray[np.int64]
    num_crops: int


@dataclass(frozen=True)
class LatentData:
    """Latents with the embeddings of their neighbors: the part of a cache that trains, or the part that is held out.

    The embeddings come from the database's memory maps or, where they are inlined in the cache, from there: the same
    bits either way.
    """

    cache: LatentCache
    database: RetrievalDatabase
    table: NeighborTable
    config: RetrievalConfig
    held_out: bool = False
    inlined: InlinedNeighbors | None = None

    @classmethod
    def open(cls, cache: str, database: str, config: RetrievalConfig, *, held_out: bool = False) -> LatentData:
        """Open a cache with a database's neighbors of the same query set, at the version that they belong to.

        Raises:
            CacheError: the database has no neighbors of this query set, or too few per crop; those that are inlined in
                the cache are others.
            DatabaseError: it has several tables of it that exclude different patches.
        """
        latents = LatentCache(cache)
        table, pinned = table_of(latents, database)
        if (stored := table.config.k_stored) < config.conditioning.num_loaded:
            raise CacheError(
                f"training takes {config.conditioning.num_loaded} neighbors, but {stored} are stored",
                where=database,
                fix="lower objective.conditioning.k_train or .pool, or build the neighbors again with a larger "
                "k_stored",
            )
        inlined = InlinedNeighbors(latents, pinned, table) if is_inlined(latents) else None
        return cls(latents, pinned, table, config, held_out, inlined)

    @property
    def shards(self) -> Sequence[Shard]:
        """See TrainingData."""
        return self._shards

    @cached_property
    def _shards(self) -> list[Shard]:
        return [Shard(stem, len(self._rows[stem].rows)) for stem in self.cache.stems]

    @cached_property
    def _rows(self) -> dict[str, _ShardRows]:
        """Of every shard; their tables are read at once, because a remote one answers slowly."""
        with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="rows") as pool:
            return dict(zip(self.cache.stems, pool.map(self._read_rows, self.cache.stems), strict=True))

    def load_shard(self, index: int) -> dict[str, NDArray]:
        """Return the cache's content under its name, see `LatentCache.latents`, and `neighbors` float16 [N, k, D].

        k is `conditioning.num_loaded` for training, and k_train, the nearest, for what is held out.

        Raises:
            CacheError: a file is missing or damaged, or a latent is not finite.
            DatabaseError: a neighbor is a patch that never was, or that was deleted.
        """
        stem = self.cache.stems[index]
        latents = np.ascontiguousarray(self.cache.latents(stem)[self._rows[stem].rows])
        if latents.dtype == np.float16:
            self._check_finite(latents, index)
        return {self.cache.content: latents, "neighbors": self._neighbors(stem)}

    def keys(self, index: int) -> Sequence[str]:
        """See TrainingData."""
        return self._column("key", self.cache.stems[index])

    def neighbor_ids(self, stem: str) -> NDArray[np.int64]:
        """Return the neighbors [N, k] of the latents that `load_shard` gives, nearest first, from the database."""
        keys = self.cache.rows(stem).column("key").to_pylist()
        of_crops = ids_of_crops(self.table, stem, list(dict.fromkeys(keys)))
        return of_crops[self._rows[stem].crops, : self._k]

    def image_ids(self, stem: str) -> list[str]:
        """Return the photograph of every latent that `load_shard` gives."""
        return self._column("image_id", stem)

    def flipped(self, stem: str) -> list[bool]:
        """Return whether each of those latents is a mirror image."""
        return self._column("flipped", stem)

    @property
    def _k(self) -> int:
        conditioning = self.config.conditioning
        return conditioning.k_train if self.held_out else conditioning.num_loaded

    def _column(self, name: str, stem: str) -> list[Any]:
        return self.cache.rows(stem).column(name).take(self._rows[stem].rows).to_pylist()

    def _neighbors(self, stem: str) -> NDArray[np.float16]:
        """Return what conditions the network [N, k, D], of patches that live in the pinned version."""
        if self.inlined is None:
            ids = self.neighbor_ids(stem)
            refuse_unusable(self.database, ids, stem)
            return condition(self.database, ids, self.config.conditioning)
        crops, k = self._rows[stem].crops, self._k
        stored = self.inlined.shard(stem, self._rows[stem].num_crops)
        refuse_unusable(self.database, stored["patch_ids"][:, :k], stem)
        unit = stored["vectors"][:, :k][crops]
        return unit if self.config.conditioning.embedding == "unit" else _with_norms(unit, stored["norms"][crops, :k])

    def _check_finite(self, latents: NDArray[np.float16], index: int) -> None:
        bits = latents.view(np.uint16) & _EXPONENT_BITS
        bad = np.flatnonzero((bits == _EXPONENT_BITS).reshape(len(latents), -1).any(axis=1))
        if len(bad):
            raise CacheError(
                f"{len(bad)} latents hold numbers that are not finite, the first is that of {self.keys(index)[bad[0]]}",
                where=f"{self.cache.folder.url}, shard {self.cache.stems[index]}",
                fix="delete this shard's tar and run `rdm cache build` again",
            )

    def _read_rows(self, stem: str) -> _ShardRows:
        table = self.cache.rows(stem)
        crops, images = (table.column(name).combine_chunks().dictionary_encode() for name in ("key", "image_id"))
        fraction = self.config.held_out_fraction
        chosen = np.array([is_held_out(image, fraction) == self.held_out for image in images.dictionary.to_pylist()])
        rows = np.flatnonzero(chosen[images.indices.to_numpy()]) if len(chosen) else np.zeros(0, np.int64)
        return _ShardRows(rows, crops.indices.to_numpy()[rows].astype(np.int64), len(crops.dictionary))


def condition(database: RetrievalDatabase, ids: NDArray[np.int64], config: ConditioningConfig) -> NDArray[np.float16]:
    """Return the embeddings [..., D] that condition a network on neighbors [...], before `scale`."""
    unit = database.embeddings(ids)
    if config.embedding == "unit":
        return unit
    return _with_norms(unit, database.patch_rows(ids).column("norm").to_numpy().reshape(ids.shape))


def _with_norms(unit: NDArray[np.float16], norms: NDArray[np.float32]) -> NDArray[np.float16]:
    return (unit.astype(np.float32) * norms[..., None]).astype(np.float16)


def draw_neighbors(neighbors: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return k of each sample's neighbors [B, K, D] as [B, k, D], drawn without repetition; all of them where K = k."""
    if neighbors.shape[1] == k:
        return neighbors
    order = torch.rand(neighbors.shape[:2], generator=generator, device=neighbors.device).argsort(dim=1)[:, :k]
    return neighbors.gather(1, order[:, :, None].expand(-1, -1, neighbors.shape[2]))


def training_context(neighbors: Tensor, config: ConditioningConfig, generator: torch.Generator) -> Context:
    """Return the context of a step: k of each sample's neighbors [B, K, D], or null with its probability."""
    k = config.k_train
    if config.k_choices:
        choice = torch.randint(len(config.k_choices), (), generator=generator, device=generator.device)
        k = config.k_choices[int(choice)]
    drawn = draw_neighbors(neighbors, k, generator)
    context = Context(tokens=drawn.float() * config.scale).dropped({"tokens": config.dropout}, generator)
    return with_mean_vector(context, config)


def with_mean_vector(context: Context, config: ConditioningConfig) -> Context:
    """Return the context with the mean of its tokens [B, L, D] as its vector [B, D], where the settings ask for it."""
    if not config.mean_vector or context.tokens is None:
        return context
    return replace(context, vector=context.tokens.mean(1))


def neighbor_context(neighbors: Tensor, config: ConditioningConfig) -> Context:
    """Return the context of neighbors [B, K, D]: the nearest k_train; the null one where no sample sees any."""
    context = with_mean_vector(Context(tokens=neighbors[:, : config.k_train].float() * config.scale), config)
    return context.null() if config.unconditional else context


def open_latents(cache: str, database: str, config: RetrievalConfig, context_dim: int) -> tuple[LatentData, FirstStage]:
    """Return the training data of a cache and a database, and the first stage that the cache was made with.

    Raises:
        CacheError: cache, neighbors, first stage and network do not belong together.
    """
    data = LatentData.open(cache, database, config)
    first_stage = load_autoencoder(data.cache.config.autoencoder)
    if first_stage.latents_digest != data.cache.info["latents_digest"]:
        raise CacheError("the latents were made by another first stage", where=cache, fix="build the cache again")
    if data.database.version.embedding_dim != context_dim:
        raise CacheError(
            f"embeddings have {data.database.version.embedding_dim} dimensions, the network reads {context_dim}",
            where=database,
            fix="set the objective's network to read them (cross_attention_dim)",
        )
    return data, first_stage


def provenance(data: LatentData) -> dict[str, Any]:
    """Return what a model has to be sampled with: first stage, encoder, and the database that it saw."""
    return {
        "autoencoder": data.cache.config.autoencoder,
        "latents_digest": data.cache.info["latents_digest"],
        "resolution": data.cache.config.resolution,
        "encoder": data.database.encoder_name,
        "encoder_digest": data.database.encoder_digest,
        "database": {"version": data.database.version.number, "source": data.database.version.source},
        "queries_digest": data.cache.info["queries_digest"],
        "cache_digest": data.cache.digest,
        "cache_rows": digest_json(data.cache.info["counts"]),
    }
