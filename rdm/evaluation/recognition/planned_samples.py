"""Samples for recognition: which pictures condition each of them, and drawing them, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.config import digest_json
from rdm.encoders import Encoder, load_encoder, normalize
from rdm.encoders.encoding import encode_images
from rdm.encoders.registry import fastest_precision
from rdm.errors import EncoderMismatchError, SourceError
from rdm.evaluation.recognition.labelled import PictureSet
from rdm.evaluation.recognition.stored_features import StoredArrays
from rdm.generators.conditions import Known
from rdm.generators.model_folder import Model
from rdm.generators.neighbor_vectors import with_norms
from rdm.generators.sample_settings import SampleSettings
from rdm.models.first_stage.first_stage import to_uint8
from rdm.progress import tracking
from rdm.sampling.drawing.batches import filled, rows_at_once

_ENCODED_AT_ONCE = 32


@dataclass(frozen=True)
class SamplePlan:
    """Which pictures condition each sample.

    Attributes:
        contexts: rows of the picture set, [M, k].
        labels: the class that the pictures of a context share, [M]; None without classes.
        queries: the picture whose nearest others a context is, [M]; None with classes.
    """

    contexts: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    queries: NDArray[np.int64] | None = None

    @property
    def rows(self) -> NDArray[np.int64]:
        """The pictures of all contexts, each once, sorted."""
        return np.unique(self.contexts)


def class_plan(rows: Sequence[NDArray[np.int64]], per_class: int, k: int, seed: int) -> SamplePlan:
    """Return samples whose contexts are k random pictures of one class.

    Args:
        rows: the pictures of each class.
        per_class: samples of each class; sample i of a class depends on the class, i and the seed
            alone.
        k: pictures of a context.
        seed: of the draws.

    Raises:
        SourceError: a class has fewer than k pictures.
    """
    counts = np.array([len(found) for found in rows])
    if counts.min() < k:
        raise SourceError(
            f"class {counts.argmin()} has {counts.min()} pictures, but {k} condition a sample",
            fix="give more labelled pictures, or --set k=1",
        )

    # A seed for each sample: more per class leave those before them as they are.
    contexts = [
        np.random.default_rng([seed, label, number]).choice(found, k, replace=False)
        for label, found in enumerate(rows)
        for number in range(per_class)
    ]
    return SamplePlan(np.stack(contexts), np.repeat(np.arange(len(rows)), per_class))


def nearest_plan(embeddings: NDArray[np.float32], num_queries: int, k: int) -> SamplePlan:
    """Return samples whose contexts are the k nearest others of a picture.

    Args:
        embeddings: of all pictures, [N, D]; as many as `num_queries` of them, evenly spaced, are
            queries.
        num_queries: samples at most.
        k: pictures of a context.

    Raises:
        SourceError: there are k pictures or fewer.
    """
    if len(embeddings) <= k:
        raise SourceError(
            f"there are {len(embeddings)} pictures, but a query needs {k} others",
            fix="give more pictures, or --set k=1",
        )
    unit = normalize(embeddings)
    queries = np.unique(np.linspace(0, len(unit) - 1, num_queries).round().astype(int))
    similarities = unit[queries] @ unit.T
    # A picture is its own nearest neighbor, and would be copied, not answered.
    similarities[np.arange(len(queries)), queries] = -np.inf
    return SamplePlan(np.argsort(-similarities, axis=1, kind="stable")[:, :k], None, queries)


def open_encoder(name: str, device: str) -> Encoder:
    """Return an encoder in the precision in which databases are built on this machine."""
    return load_encoder(name, device=device, precision=fastest_precision(name, device))


def model_encoder(model: Model, name: str | None, device: str) -> Encoder:
    """Return the encoder that a model was trained with, in the precision of databases.

    Args:
        model: reads neighbors.
        name: of the encoder; None: the one that the model names.
        device: computes it.

    Raises:
        EncoderMismatchError: it is not the model's.
    """
    encoder = open_encoder(name or str(model.info.encoder), device)
    if (found := encoder.fingerprint.digest()) != model.info.encoder_digest:
        raise EncoderMismatchError(
            f"the model was trained with embeddings of {model.info.encoder} "
            f"{model.info.encoder_digest}, this encoder is {encoder.fingerprint.name} {found}",
            where=model.directory,
            fix="give --encoder the model's",
        )
    return encoder


def embed(
    store: StoredArrays, encoder: Encoder, pictures: PictureSet, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return raw embeddings [len(rows), D] of whole pictures, as a database of `crop.mode=whole`
    has them.

    Args:
        store: keeps finished chunks.
        encoder: the one of the model.
        pictures: a set.
        rows: which of them, [N].
    """
    # Kept by encoder, pictures and rows, so that a second evaluation embeds nothing.
    key = digest_json([encoder.fingerprint.digest(), pictures.digest, rows.tolist()])

    def compute() -> NDArray[np.float32]:
        with tracking("embed", len(rows), "pictures") as tracker:
            parts = []
            for start in range(0, len(rows), _ENCODED_AT_ONCE):
                part = rows[start : start + _ENCODED_AT_ONCE]
                parts.append(encode_images(encoder, pictures.images(part), _ENCODED_AT_ONCE))
                tracker.advance(len(part))
        return np.concatenate(parts)

    return store.once("embeddings", key, compute)


@dataclass(frozen=True)
class PlannedDraw:
    """Draws the samples of a plan, batch by batch.

    Attributes:
        model: draws.
        plan: what conditions them.
        embeddings: raw, of `plan.rows`, [R, D].
        settings: how to draw.
        seed: sample i has the seed `seed + i`.
        pictures_digest: of the pictures that condition.
    """

    model: Model
    plan: SamplePlan
    embeddings: NDArray[np.float32]
    settings: SampleSettings
    seed: int
    pictures_digest: str

    @property
    def digest(self) -> str:
        """Changes when a sample would."""
        settings = self.model.acting(self.settings)
        of_plan = [self.plan.contexts.tolist(), self.seed, self.pictures_digest]
        return digest_json([self.model.digest, settings, of_plan])

    def samples(self, store: StoredArrays, name: str = "samples") -> NDArray[np.uint8]:
        """Return all samples, uint8 [M, H, W, 3]; those of finished batches are read.

        Args:
            store: keeps finished batches.
            name: of the set, in the store.
        """
        total, digest = len(self.plan.contexts), self.digest
        size = rows_at_once(self.settings, self.model.device)
        batches = []
        with tracking("sample", total, "pictures") as tracker:
            for start in range(0, total, size):
                rows = slice(start, min(start + size, total))
                key = digest_json([digest, rows.start, rows.stop])
                batch = store.once(f"{name}-{start:06d}", key, lambda rows=rows: self._draw(rows))
                batches.append(batch)
                tracker.advance(len(batch))
        return np.concatenate(batches)

    @torch.no_grad()
    def _draw(self, rows: slice) -> NDArray[np.uint8]:
        places = np.searchsorted(self.plan.rows, self.plan.contexts[rows])
        neighbors = self.model.config.conditions.neighbors
        assert neighbors is not None
        vectors = vectors_of(self.embeddings[places], neighbors.embedding)
        seeds = range(self.seed + rows.start, self.seed + rows.stop)
        asked = list(zip(torch.from_numpy(vectors), seeds, strict=True))
        batch = filled(asked, rows_at_once(self.settings, self.model.device))
        context = self.model.generator.context([Known(row) for row, _ in batch.rows])
        drawn = self.model.draw(context, [seed for _, seed in batch.rows], self.settings)
        return batch.counted(to_uint8(drawn))


def vectors_of(
    embeddings: NDArray[np.float32], embedding: Literal["unit", "raw"]
) -> NDArray[np.float32]:
    """Return raw conditioning embeddings [B, k, D], with the bits that a database would give."""
    vectors = normalize(embeddings).astype(np.float16)
    if embedding == "raw":
        vectors = with_norms(vectors, np.linalg.norm(embeddings, axis=-1).astype(np.float32))
    return vectors.astype(np.float32)
