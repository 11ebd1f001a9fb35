"""What a run learned from, in every checkpoint and in `model.json`."""

from __future__ import annotations

from typing import Any

from rdm.config import Config, Record


class SeenDatabase(Config):
    """The database whose neighbors conditioned a run, and the versions seen before."""

    version: int
    source: str
    earlier_versions: tuple[int, ...] = ()


class DefaultDatabase(Record):
    """A database that a model is published with, by its address."""

    url: str
    """An address, or a folder as seen from the model's."""
    version: int
    digest: str
    """Of the version."""


class Provenance(Config):
    """What a run learned from; what does not apply to it is None."""

    autoencoder: str | None = None
    """Name of the first stage."""
    latents_digest: str | None = None
    """Of the first stage's encoder."""
    resolution: int | None = None
    """Side of the pictures, pixels."""
    held_out_fraction: float | None = None
    """Share of the query photographs that was kept for measuring."""
    class_names: tuple[str, ...] | None = None
    """Of the classes, by number."""
    text_encoder_digest: str | None = None
    """Of the text network that captions were read by."""
    encoder: str | None = None
    encoder_digest: str | None = None
    database: SeenDatabase | None = None
    queries_digest: str | None = None
    cache_digest: str | None = None
    cache_rows: str | None = None
    """Digest of how many rows each shard of the cache has."""
    source: str | None = None
    """Photographs, where they are trained on themselves."""
    photographs_digest: str | None = None

    def values(self) -> dict[str, Any]:
        """Return what applies, as JSON values."""
        return self.model_dump(mode="json", exclude_none=True)
