"""The facts of a version, in one shape for builds, imports, status, cards and reports."""

from __future__ import annotations

from rdm.config import Record
from rdm.sources.kinds.imported import is_imported
from rdm.storage import IndexDecision, IndexFacts, Version

MADE_HERE = "made the embeddings here"


class VersionFacts(Record):
    """One version: counts of what lives in it, its encoder, its index and the measured recall."""

    version: int
    source: str
    source_fingerprint: str
    photographs: int
    """Those with a living patch."""
    patches: int
    """Those that are not deleted."""
    deleted_patches: int
    removed_photographs: int
    """Those that were removed on request."""
    near_duplicates: int
    """Photographs that are left out because they resemble another one."""
    dropped_patches: dict[str, int]
    """Patches that filters left out, by cause."""
    embedding_dim: int
    encoder: str
    encoder_digest: str
    encoder_origin: str
    """How it is known that the vectors are this encoder's."""
    precision: str
    has_pixels: bool
    index: str
    """Its kind, as faiss names it."""
    recall_at_20: float
    recall_ci95: float
    index_decision: IndexDecision
    num_bytes: int
    """Of all parts together."""


class DatabaseStatus(VersionFacts):
    """The facts that `rdm database status` shows: a version's, and what else the folder holds."""

    root: str
    versions: list[int]
    index_facts: IndexFacts
    query_sets: list[str]


def version_facts(version: Version) -> VersionFacts:
    """Return the facts of a version."""
    return VersionFacts(
        version=version.number,
        source=version.source,
        source_fingerprint=version.source_fingerprint,
        photographs=version.num_images,
        patches=version.num_live_patches,
        deleted_patches=len(version.tombstones),
        removed_photographs=len(version.deleted_image_ids),
        near_duplicates=sum(part.num_rows for part in version.parts_of("duplicates")),
        dropped_patches=version.dropped_patches,
        embedding_dim=version.embedding_dim,
        encoder=version.encoder.name,
        encoder_digest=version.encoder.digest,
        encoder_origin=version.encoder.origin or MADE_HERE,
        precision=version.encoder.precision,
        has_pixels=not is_imported(version.source),
        index=version.index.index_key,
        recall_at_20=version.index.recall_at_20,
        recall_ci95=version.index.recall_ci95,
        index_decision=version.index.decision,
        num_bytes=version.num_bytes,
    )
