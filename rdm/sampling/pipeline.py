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
from rdm.errors import UsageError
from rdm.models.first_stage import to_uint8
from rdm.progress import tracking
from rdm.sampling.model import RetrievalModel, SampleSettings
from rdm.sampling.queries import Query, null_queries, query_set_proposal, unconditional_queries
from rdm.training.latents import ConditioningConfig, condition, with_mean_vector


@dataclass(frozen=True)
class Sample:
    """One picture, and everything that it came from."""

    query: Query
    seed: int
    pixels: NDArray[np.uint8]

    def provenance(
        self, model: RetrievalModel, database: RetrievalDatabase | None, settings: SampleSettings
    ) -> dict[str, Any]:
        """Return the sidecar of the picture: query, seed, settings, and every neighbor with its source and licence."""
        neighbors = [] if database is None or model.unconditional else [
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
            "settings": model.effective(settings).model_dump(mode="json"),
            "model": str(model.directory),
            "database": database and {"root": database.folder.url, "version": database.version.number},
        }


def context_tokens(
    database: RetrievalDatabase, ids: NDArray[np.int64], config: ConditioningConfig, device: torch.device
) -> Context:
    """Return the context of neighbors [B, k]: tokens [B, k, D], as training made them."""
    vectors = condition(database, ids, config).astype(np.float32)
    return with_mean_vector(Context(tokens=torch.from_numpy(vectors).to(device) * config.scale), config)


def proposed_queries(
    model: RetrievalModel, database: RetrievalDatabase | None, seeds: Sequence[int], *, top_m: float, k: int
) -> list[Query]:
    """Return what an unconditional sample of each seed is drawn from: a patch of p_D, nothing for an LDM.

    Raises:
        UsageError: the model reads neighbors, and there is no database.
        DatabaseError: the database has no neighbors of the model's query set.
    """
    if model.unconditional:
        return null_queries(seeds)
    if database is None:
        raise _no_database()
    proposal = query_set_proposal(database, model.info["queries_digest"]).truncated(top_m)
    return unconditional_queries(database, proposal, seeds, k)


def check_asked(model: RetrievalModel, database: RetrievalDatabase | None, *, texts_or_images: bool) -> None:
    """Refuse what a model cannot be asked.

    Raises:
        UsageError: a text or picture for a model that reads no neighbors; no database for one that does.
        EncoderMismatchError: database and model do not belong to the same encoder.
    """
    if model.unconditional and texts_or_images:
        raise UsageError(
            "the model was trained without neighbors, so neither a text nor a picture can tell it anything",
            where=model.directory,
            fix="--unconditional, or a model of a recipe with neighbors",
        )
    if database is not None:
        model.check_database(database)
    elif not model.unconditional:
        raise _no_database()


def _no_database() -> UsageError:
    return UsageError("the model reads neighbors, so it needs a database to look them up in", fix="--database DIR")


@torch.no_grad()
def sample(
    model: RetrievalModel,
    database: RetrievalDatabase | None,
    queries: Sequence[Query],
    seeds: Sequence[int],
    settings: SampleSettings,
) -> list[Sample]:
    """Draw one picture per (query, seed) pair; sequences of equal length, so repeat a query to draw several seeds.

    Picture i depends on its own query and seed only, not on the batch that it was drawn in.

    Raises:
        EncoderMismatchError: database and model do not belong to the same encoder.
        UsageError: neighbors for a model that reads none, or no database for one that does.
        ValueError: the sequences differ in length.
    """
    check_asked(model, database, texts_or_images=any(query.kind != "unconditional" for query in queries))
    effective = model.effective(settings)
    pairs = list(zip(queries, seeds, strict=True))
    results: list[Sample] = []
    with tracking("sample", len(pairs), "pictures") as tracker:
        for start in range(0, len(pairs), settings.batch_size):
            batch = pairs[start : start + settings.batch_size]
            context = _context(model, database, [query.neighbor_ids[: settings.k] for query, _ in batch])
            images = to_uint8(model.draw(context, [seed for _, seed in batch], effective))
            results += [Sample(query, seed, image) for (query, seed), image in zip(batch, images, strict=True)]
            tracker.advance(len(batch))
    return results


def _context(
    model: RetrievalModel, database: RetrievalDatabase | None, ids: Sequence[NDArray[np.int64]]
) -> Context:
    if database is None or model.unconditional:
        tokens = torch.zeros(len(ids), 1, model.context_dim, device=model.device)
        return with_mean_vector(Context(tokens=tokens), model.conditioning)
    return context_tokens(database, np.stack(ids), model.conditioning, model.device)
