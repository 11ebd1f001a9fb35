"""Writes down what pictures were drawn from, as their recipes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.compute.device import describe_device
from rdm.compute.machine import has_fast_bfloat16
from rdm.config import digest_json
from rdm.database import RetrievalDatabase
from rdm.generators.model_folder import Model, portable_name
from rdm.generators.sample_settings import SampleSettings
from rdm.models.assets import public_name
from rdm.models.unet import num_parameters
from rdm.sampling.picture_file import pixels_digest
from rdm.sampling.pipeline import Sample
from rdm.sampling.record import (
    Credit,
    DatabaseReference,
    EncoderReference,
    ModelReference,
    QueryRecord,
    SampleRecord,
    SoftwareVersions,
    TokenRecord,
)
from rdm.sources.licenses import license_of


@dataclass(frozen=True, eq=False)
class Recorder:
    """Writes recipes of pictures of one model, one database and one choice of settings.

    Attributes:
        model: that draws.
        database: of the neighbors; None of a model without.
        settings: that pictures are drawn with.
    """

    model: Model
    database: RetrievalDatabase | None
    settings: SampleSettings

    def records(self, samples: Sequence[Sample], files: Sequence[str]) -> list[SampleRecord]:
        """Return the recipes of pictures that are written to files, from one read of the
        database."""
        queries = [item.query for item in samples]
        credits: list[tuple[Credit, ...]] = [()] * len(samples)
        if self.database is not None and self.model.reads_neighbors:
            credits = credits_of(
                self.database, [q.neighbor_ids for q in queries], [q.similarities for q in queries]
            )
        return [
            self._record(item, neighbors, file)
            for item, neighbors, file in zip(samples, credits, files, strict=True)
        ]

    def _record(self, item: Sample, neighbors: tuple[Credit, ...], file: str) -> SampleRecord:
        height, width = item.pixels.shape[:2]
        names = [reference.name for reference in self._databases]
        return SampleRecord(
            file=file,
            query=QueryRecord(kind=item.query.kind, label=_public_label(item)),
            seed=item.seed,
            databases=self._databases,
            tokens=tuple(
                TokenRecord(kind="patch", patch_id=one.patch_id, database=names[0])
                for one in neighbors
            ),
            neighbors=neighbors,
            settings=self.model.acting(self.settings),
            model=self._model,
            encoder=self._encoder,
            software=self._software,
            batch=item.place,
            size=(width, height),
            pixels_sha256=pixels_digest(item.pixels),
        )

    @cached_property
    def _databases(self) -> tuple[DatabaseReference, ...]:
        if self.database is None or not self.model.reads_neighbors:
            return ()
        return (database_reference(self.database),)

    @cached_property
    def _model(self) -> ModelReference:
        return ModelReference(
            name=public_name(self.model.directory),
            digest=self.model.digest,
            parameters=num_parameters(self.model.generator.network),
        )

    @cached_property
    def _encoder(self) -> EncoderReference | None:
        if self.database is None or not self.model.reads_neighbors:
            return None
        database = self.database
        name = portable_name(database.encoder_name)
        return EncoderReference(name=name, digest=database.encoder_digest)

    @cached_property
    def _software(self) -> SoftwareVersions:
        return software_on(self.model.device)


def database_reference(database: RetrievalDatabase) -> DatabaseReference:
    """Return what names a version of a database, without its place."""
    return DatabaseReference(
        name=database_name(database),
        version=database.version.number,
        digest=digest_json(database.version.model_dump(mode="json")),
    )


def database_name(database: RetrievalDatabase) -> str:
    """Return the last part of a database's place."""
    return database.folder.url.rstrip("/").rpartition("/")[2]


def software_on(device: torch.device) -> SoftwareVersions:
    """Return the versions of what computes on a device now."""
    return SoftwareVersions(
        rdm=_own_version(),
        torch=torch.__version__,
        diffusers=version("diffusers"),
        device=describe_device(device),
        precision="bf16" if has_fast_bfloat16(device.type) else "fp32",
        threads=torch.get_num_threads() if device.type == "cpu" else None,
    )


def _own_version() -> str:
    try:
        return version("retrieval-diffusion")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0"


def credits_of(
    database: RetrievalDatabase,
    ids: Iterable[NDArray[np.int64]],
    similarities: Iterable[NDArray[np.float32]],
) -> list[tuple[Credit, ...]]:
    """Return the credits of pictures' neighbors, in order, from one read of the database."""
    pairs = zip(ids, similarities, strict=True)
    rows = [list(zip(some.tolist(), values.tolist(), strict=True)) for some, values in pairs]
    distinct = np.unique(np.array([patch_id for row in rows for patch_id, _ in row], np.int64))
    found = (
        {record.patch_id: record for record in database.records(distinct)} if len(distinct) else {}
    )
    name = database_name(database)

    def credit(patch_id: int, similarity: float) -> Credit:
        record = found[patch_id]
        license = license_of(record.license)
        return Credit(
            patch_id=patch_id,
            database=name,
            similarity=similarity,
            image_id=record.image_id,
            title=record.title,
            author=record.author,
            license=license.name,
            license_url=license.url,
            # A local source's is the name of a file, which says nothing elsewhere.
            url=record.url if record.url.startswith(("http://", "https://")) else "",
            landing_page=record.landing_page,
            box=record.box,
            sha256=record.sha256,
        )

    return [tuple(credit(*neighbor) for neighbor in row) for row in rows]


def _public_label(item: Sample) -> str:
    """Return a query's label, of a picture without its folder."""
    label = item.query.label
    return label.replace("\\", "/").rpartition("/")[2] if item.query.kind == "image" else label
