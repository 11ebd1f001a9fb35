"""From queries to pictures: neighbors become context tokens, the head draws latents, the first stage decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config
from rdm.context import Context
from rdm.database import RetrievalDatabase
from rdm.models.precision import autocast
from rdm.progress import tracking
from rdm.sampling.model import RetrievalDiffusionModel
from rdm.sampling.queries import Query
from rdm.training.objectives.retrieval_diffusion import ConditioningConfig, condition


class SampleSettings(Config):
    """How pictures are drawn."""

    k: int = Field(default=4, ge=1, description="neighbors that condition a sample; need not be the training's k")
    num_steps: int = Field(default=100, ge=1, description="DDIM steps")
    eta: float = Field(default=1.0, ge=0, le=1, description="DDIM's eta: 0 is deterministic; RDM samples with 1")
    guidance_scale: float = Field(default=2.0, ge=0, description="s of e_u + s (e_c - e_u); 1: no guidance")
    batch_size: int = Field(default=32, ge=1, description="samples drawn at once")


@dataclass(frozen=True)
class Sample:
    """One picture, and everything that it came from."""

    query: Query
    seed: int
    pixels: NDArray[np.uint8]

    def provenance(
        self, model: RetrievalDiffusionModel, database: RetrievalDatabase, settings: SampleSettings
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
    """Return the context of neighbors [B, k]: tokens [B, k, D], as training made them."""
    vectors = condition(database, ids, config).astype(np.float32)
    return Context(tokens=torch.from_numpy(vectors).to(device) * config.scale)


@torch.no_grad()
def sample(
    model: RetrievalDiffusionModel,
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
            context = context_tokens(database, ids, model.config.conditioning, model.device)
            with autocast(model.device):
                latents = model.head.sample(
                    model.denoiser,
                    context,
                    shape=model.latent_shape,
                    seeds=[seed for _, seed in batch],
                    num_steps=settings.num_steps,
                    eta=settings.eta,
                    guidance_scale=settings.guidance_scale,
                )
            images = to_uint8(model.first_stage.decode(latents.float().cpu()))
            results += [Sample(query, seed, image) for (query, seed), image in zip(batch, images, strict=True)]
            tracker.advance(len(batch))
    return results


def to_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    """Return pictures [B, 3, H, W] in [-1, 1] as uint8 [B, H, W, 3]."""
    scaled = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
