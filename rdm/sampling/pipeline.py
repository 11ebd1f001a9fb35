"""From queries to pictures: neighbors become context tokens, from which the model draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.context import Context
from rdm.database import RetrievalDatabase
from rdm.models.first_stage import to_uint8
from rdm.progress import tracking
from rdm.sampling.model import RetrievalModel, SampleSettings
from rdm.sampling.queries import Query
from rdm.training.latents import ConditioningConfig, condition


@dataclass(frozen=True)
class Sample:
    """One picture, and everything that it came from."""

    query: Query
    seed: int
    pixels: NDArray[np.uint8]

    def provenance(
        self, model: RetrievalModel, database: RetrievalDatabase, settings: SampleSettings
    ) -> dict[str, Any]:
        """Return the sidecar of the picture: query, seed, settings, and every neighbor with its source and licence."""
        neighbors = [
            {
                "patch_id": r.patch_id,
                "similarity": float(s),
                "image_id": r.image_id,
                "url": r.url,
                "author": r.author,
                "license": r.license,
                "box": r.box,
            }
            for r, s in zip(database.records(self.query.neighbor_ids), self.query.similarities, strict=True)
        ]
        return {
            "kind": self.query.kind,
            "label": self.query.label,
            "seed": self.seed,
            "neighbors": neighbors,
            "settings": settings.model_dump(mode="json"),
            "model": str(model.directory),
            "database": {"root": database.folder.url, "version": database.version.number},
        }


def context_tokens(
    database: RetrievalDatabase, ids: NDArray[np.int64], config: ConditioningConfig, device: torch.device
) -> Context:
    """Return the context of neighbors [B, k]: tokens [B, k, D], as training made them; the null one without any."""
    vectors = condition(database, ids, config).astype(np.float32)
    context = Context(tokens=torch.from_numpy(vectors).to(device) * config.scale)
    return context.null() if config.dropout == 1 else context


@torch.no_grad()
def sample(
    model: RetrievalModel,
    database: RetrievalDatabase,
    queries: Sequence[Query],
    seeds: Sequence[int],
    settings: SampleSettings,
) -> list[Sample]:
    """Draw one picture per (query, seed) pair; sequences of equal length, so repeat a query to draw several seeds.

    Picture i depends on its own query and seed only, not on the batch that it was drawn in.

    Raises:
        EncoderMismatchError: database and model do not belong to the same encoder.
        ValueError: the sequences differ in length.
    """
    model.check_database(database)
    pairs = list(zip(queries, seeds, strict=True))
    results: list[Sample] = []
    with tracking("sample", len(pairs), "pictures") as tracker:
        for start in range(0, len(pairs), settings.batch_size):
            batch = pairs[start : start + settings.batch_size]
            ids = np.stack([query.neighbor_ids[: settings.k] for query, _ in batch])
            context = context_tokens(database, ids, model.conditioning, model.device)
            images = to_uint8(model.draw(context, [seed for _, seed in batch], settings))
            results += [Sample(query, seed, image) for (query, seed), image in zip(batch, images, strict=True)]
            tracker.advance(len(batch))
    return results
