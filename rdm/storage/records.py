"""The records in a database's version files: the manifest, and one record for each version."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from rdm.config import Record, absent

Box = tuple[int, int, int, int]


class Manifest(Record):
    """`manifest.json`: the path of the current version's file, and the SHA-256 of that file."""

    format: str
    format_version: int
    current: str
    sha256: str


class Part(Record):
    """One file of a version: what it holds, how much, and its SHA-256."""

    kind: str
    path: str
    num_rows: int
    num_bytes: int
    sha256: str


class EncoderRecord(Record):
    """The encoder that made a version's vectors."""

    name: str
    """The user's name for it, such as `assets://encoder-lite`."""
    digest: str
    """Of the fingerprint without its name."""
    precision: str
    """Number format of the image tower."""
    fingerprint: dict[str, JsonValue]
    """As the release that made the database wrote it: other releases may have other fields."""
    origin: str | None = absent()
    """Of imported vectors: how it is known that they are this encoder's."""
    import_digest: str | None = absent()
    """Of imported vectors: changes whenever the import does."""


class IndexDecision(Record):
    """The last action on a version's index (`built`, `extended`), and its reason."""

    action: str
    reason: str


class IndexFacts(Record):
    """`index_infos.json`: a version's index, and its audited recall@20 with the 95% half-width."""

    index_key: str
    """Its kind, as faiss names it."""
    index_param: str
    """Its search parameters, as faiss writes them."""
    num_vectors: int
    dim: int
    num_bytes: int
    head_bytes: int
    """Bytes of the file before the lists."""
    head_sha256: str
    recall_at_20: float
    recall_ci95: float
    audit_queries: int
    built_num_vectors: int
    """Vectors when it was last built, before it was extended."""
    built_recall_at_20: float
    decision: IndexDecision


class Version(Record):
    """One state of a database with its neighbor tables, without times: equal contents, equal bytes.

    `patch_id` is never reused: `next_patch_id` only grows. Row `patch_id - first` of an embedding
    part, counted over the parts in order, is that patch's vector. Versions before `oldest_version`
    were dropped by a compaction.
    """

    number: int
    parent: int | None
    source: str
    source_fingerprint: str
    num_images: int
    num_patches: int
    next_patch_id: int
    embedding_dim: int
    encoder: EncoderRecord
    index: IndexFacts
    tombstones: list[int]
    deleted_image_ids: list[str]
    """Photographs that were removed on request, and never come back."""
    parts: list[Part]
    config: dict[str, JsonValue]
    """The settings that made it, as in `run.json`."""
    oldest_version: int
    dropped_patches: dict[str, int]
    """Patches that filters left out at cutting, by cause; of photographs deleted since, too."""
    deleted_patches: dict[str, list[Box]]
    """Boxes of single patches removed on request, by photograph: they are never cut again."""
    deleted_sha256: list[str]
    """Digests of photographs removed on request: equal bytes are refused under any name."""

    def parts_of(self, kind: str) -> list[Part]:
        """Return the parts of one kind, in row order."""
        return [part for part in self.parts if part.kind == kind]

    def tombstone_ids(self) -> NDArray[np.int64]:
        """Return the sorted ids of all deleted patches."""
        return np.array(sorted(self.tombstones), np.int64)

    @property
    def num_live_patches(self) -> int:
        """Patches that are not deleted."""
        return self.num_patches - len(self.tombstones)

    @property
    def num_bytes(self) -> int:
        """The size of all parts together."""
        return sum(part.num_bytes for part in self.parts)


def version_path(number: int) -> str:
    """Return the path of a version's file."""
    return f"versions/{number:06d}.json"
