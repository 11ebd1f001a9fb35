"""The facts of one version of a database, for cards and reports."""

from __future__ import annotations

from rdm.database.facts import VersionFacts
from rdm.storage import IndexDecision


def version_facts(**changes: object) -> VersionFacts:
    """Return the facts of a version of 827 photographs, with changes."""
    facts = VersionFacts(
        version=3,
        source="birds",
        source_fingerprint="41f9",
        photographs=827,
        patches=3240,
        deleted_patches=7,
        removed_photographs=2,
        near_duplicates=0,
        dropped_patches={},
        embedding_dim=512,
        encoder="lite",
        encoder_digest="9f2c",
        encoder_origin="made the embeddings here",
        precision="float32",
        has_pixels=True,
        index="Flat",
        recall_at_20=0.993,
        recall_ci95=0.003,
        index_decision=IndexDecision(action="built", reason="there was none"),
        num_bytes=1_000,
    )
    return facts.model_copy(update=changes)
