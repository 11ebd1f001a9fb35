"""Training rows of a latent cache, with a column for each conditioning source."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rdm.config import digest_json
from rdm.errors import CacheError, UsageError
from rdm.generators.conditions import Conditions
from rdm.generators.provenance import Provenance, SeenDatabase
from rdm.sources.query_set import is_held_out
from rdm.training.data.class_annotation import ClassColumn
from rdm.training.data.latent_cache import LatentCache
from rdm.training.data.neighbor_column import NeighborColumn
from rdm.training.data.text_annotation import TextColumn
from rdm.training.data.training_data import Shard, ShardRows

_EXPONENT_BITS = np.uint16(0x7C00)  # all set: a float16 that is infinite or not a number
_NUM_READERS = 16


class RowsConfig(Protocol):
    """What the rows of a generator depend on."""

    @property
    def conditions(self) -> Conditions:
        """The sources that condition."""
        ...

    @property
    def held_out_fraction(self) -> float:
        """Share of the query photographs kept for measuring."""
        ...


@dataclass(frozen=True)
class RowSettings:
    """The settings of a trained model's rows, see RowsConfig."""

    conditions: Conditions
    held_out_fraction: float


class Column(Protocol):
    """What one source says of each row."""

    def load(self, stem: str, rows: ShardRows) -> dict[str, NDArray[Any]]:
        """Return arrays [N, ...] by name for the rows of a shard."""
        ...


@dataclass(frozen=True)
class TrainingRows:
    """The part of a cache that trains, or the part that is held out; see TrainingData.

    Attributes:
        cache: what the head learns.
        config: sources, and which photographs are held out.
        held_out: which of the two parts.
        neighbors: of every row, where they condition.
        text: likewise, the captions.
        label: likewise, the classes.
    """

    cache: LatentCache
    config: RowsConfig
    held_out: bool = False
    neighbors: NeighborColumn | None = None
    text: TextColumn | None = None
    label: ClassColumn | None = None

    @classmethod
    def open(
        cls, cache: str, database: str | None, config: RowsConfig, *, held_out: bool = False
    ) -> TrainingRows:
        """Open a cache with what its rows are conditioned on.

        Args:
            cache: its folder or URL.
            database: where neighbors come from; None where none condition.
            config: conditions, and the held-out share.
            held_out: whether to open held-out rows or training rows.

        Raises:
            UsageError: neighbors condition, and there is no database.
            CacheError: the database has no neighbors of the cache's query set, or too few per crop;
                those that are inlined in the cache are others.
            DatabaseError: it has several tables of it that exclude different patches.
        """
        opened = LatentCache(cache)
        neighbors = None
        if config.conditions.neighbors is not None:
            if database is None:
                raise UsageError(
                    "neighbors condition this recipe, so it needs a database", fix="--database DIR"
                )
            neighbors = NeighborColumn.open(
                opened, database, config.conditions.neighbors, held_out=held_out
            )

        text = config.conditions.text
        captions = text and TextColumn.open(opened, text, held_out=held_out)
        label = config.conditions.label
        classes = label and ClassColumn.open(opened, label)
        return cls(opened, config, held_out, neighbors, captions, classes)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns beside the cache's own."""
        columns = (self.neighbors, self.text, self.label)
        return tuple(column for column in columns if column is not None)

    @property
    def shards(self) -> Sequence[Shard]:
        """See TrainingData."""
        return self._shards

    @cached_property
    def _shards(self) -> list[Shard]:
        return [Shard(stem, len(self._rows[stem].rows)) for stem in self.cache.stems]

    @cached_property
    def _rows(self) -> dict[str, ShardRows]:
        """Of every shard; their tables are read at once, because a remote one answers slowly."""
        with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="rows") as pool:
            return dict(
                zip(self.cache.stems, pool.map(self._read_rows, self.cache.stems), strict=True)
            )

    def load_shard(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the cache's content, see `LatentCache.latents`, and every column's arrays.

        Raises:
            CacheError: a file is missing or damaged, or a latent is not finite.
            DatabaseError: a neighbor is a patch that never was, or that was deleted.
        """
        stem = self.cache.stems[index]
        content = np.ascontiguousarray(self.cache.latents(stem)[self._rows[stem].rows])
        if content.dtype == np.float16:
            self._check_finite(content, index)
        found = {self.cache.content: content}
        for column in self.columns:
            found |= column.load(stem, self._rows[stem])
        return found

    def keys(self, index: int) -> Sequence[str]:
        """See TrainingData."""
        return self._column("key", self.cache.stems[index])

    def neighbor_ids(self, stem: str) -> NDArray[np.int64]:
        """Return neighbors [N, k] of the rows of `load_shard`, nearest first, from the database."""
        assert self.neighbors is not None
        return self.neighbors.ids(stem, self._rows[stem])

    def image_ids(self, stem: str) -> list[str]:
        """Return the photograph of every row that `load_shard` gives."""
        return self._column("image_id", stem)

    def flipped(self, stem: str) -> list[bool]:
        """Return whether each of those rows is a mirror image."""
        return self._column("flipped", stem)

    def provenance(self) -> Provenance:
        """Return what a model of these rows is sampled with: first stage, encoder, database."""
        info, config = self.cache.info, self.cache.config
        found = Provenance(
            autoencoder=config.autoencoder,
            latents_digest=info.latents_digest,
            resolution=config.resolution,
            held_out_fraction=self.config.held_out_fraction,
            queries_digest=info.queries_digest,
            cache_digest=self.cache.digest,
            cache_rows=digest_json(info.counts),
            text_encoder_digest=self.text and self.text.info.encoder_digest,
            class_names=self.label and self.label.info.names,
        )

        if self.neighbors is None:
            return found
        database = self.neighbors.database
        seen = SeenDatabase(version=database.version.number, source=database.version.source)
        encoder = {"encoder": database.encoder_name, "encoder_digest": database.encoder_digest}
        return found.model_copy(update={**encoder, "database": seen})

    def _column(self, name: str, stem: str) -> list[Any]:
        return self.cache.rows(stem).column(name).take(self._rows[stem].rows).to_pylist()

    def _check_finite(self, latents: NDArray[np.float16], index: int) -> None:
        bits = latents.view(np.uint16) & _EXPONENT_BITS
        bad = np.flatnonzero((bits == _EXPONENT_BITS).reshape(len(latents), -1).any(axis=1))
        if len(bad):
            raise CacheError(
                f"{len(bad)} latents hold numbers that are not finite, the first is that of "
                f"{self.keys(index)[bad[0]]}",
                where=f"{self.cache.folder.url}, shard {self.cache.stems[index]}",
                fix="delete this shard's tar and run `rdm cache build` again",
            )

    def _read_rows(self, stem: str) -> ShardRows:
        table = self.cache.rows(stem)
        crops, images = (
            table.column(name).combine_chunks().dictionary_encode() for name in ("key", "image_id")
        )

        # Held out by photograph, not by crop: crops of one share their pixels.
        fraction = self.config.held_out_fraction
        chosen = np.array(
            [
                is_held_out(image, fraction) == self.held_out
                for image in images.dictionary.to_pylist()
            ]
        )
        rows = (
            np.flatnonzero(chosen[images.indices.to_numpy()])
            if len(chosen)
            else np.zeros(0, np.int64)
        )

        return ShardRows(
            rows, crops.indices.to_numpy()[rows].astype(np.int64), len(crops.dictionary)
        )
