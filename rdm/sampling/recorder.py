"""Writes down what pictures were drawn from, as their recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count

import numpy as np
import torch

from rdm.compute.device import describe_device
from rdm.config import digest_json
from rdm.database import RetrievalDatabase
from rdm.database.reader import PatchRecord
from rdm.generators.model_folder import Model, portable_name
from rdm.generators.sample_settings import SampleSettings
from rdm.models.assets import public_name
from rdm.models.precision import Precision, acting_precision
from rdm.models.unet import num_parameters
from rdm.sampling.drawing.pipeline import Sample
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.record import (
    Credit,
    DatabaseReference,
    EncoderReference,
    InversionRecord,
    ModelReference,
    NegativeRecord,
    QueryRecord,
    SampleRecord,
    SoftwareVersions,
    TokenRecord,
)
from rdm.sampling.retrieval.conditioning import Tokens
from rdm.sampling.retrieval.queries import Query
from rdm.sources.licenses import license_of

PatchAt = tuple[str, int]
"""The request's name of a database, empty for the first, and a patch in it."""


@dataclass(frozen=True, eq=False)
class Recorder:
    """Writes recipes of pictures of one model, with one choice of databases and settings.

    Attributes:
        model: that draws.
        databases: of the neighbors, by the request's names; none of a model that reads none.
        settings: that pictures are drawn with.
        weights: of the databases, by their names; those that are not named have 1.
    """

    model: Model
    databases: Mapping[str, RetrievalDatabase]
    settings: SampleSettings
    weights: Mapping[str, float] = field(default_factory=dict)

    def records(self, samples: Sequence[Sample], files: Sequence[str]) -> list[SampleRecord]:
        """Return the recipes of pictures that are written to files, from one read of each
        database."""
        found = self._patch_records(samples)
        return [self._record(*pair, found) for pair in zip(samples, files, strict=True)]

    def _record(
        self, item: Sample, file: str, found: Mapping[PatchAt, PatchRecord]
    ) -> SampleRecord:
        height, width = item.pixels.shape[:2]
        query, conditioning = item.query, item.conditioning
        patches = query.patches if self._names else ()
        weights = query.weights or (1.0,) * len(patches)

        # A model that reads no neighbors may be given a database all the same: none is credited.
        neighbors = tuple(
            self._credit(at, found[at], float(similarity), weight)
            for at, similarity, weight in zip(
                patches, query.similarities[: len(patches)], weights, strict=True
            )
        )
        tokens = None if conditioning is None else conditioning.tokens

        # Samples that were put together in Python may lack their conditioning: fields stay empty.
        return SampleRecord(
            file=file,
            query=QueryRecord(
                kind=query.kind,
                label=self._label(query),
                image_sha256="" if conditioning is None else conditioning.image_sha256,
                turn=None if conditioning is None else conditioning.turn,
            ),
            seed=item.seed,
            databases=self._references,
            tokens=() if tokens is None else self._tokens(tokens),
            neighbors=neighbors,
            negative=self._negative(item, found),
            settings=self.model.acting(self.settings),
            start=item.start,
            inversion=self._inversion(item, found),
            model=self._model,
            encoder=self._encoder,
            software=self._software,
            batch=item.place,
            size=(width, height),
            pixels_sha256=pixels_digest(item.pixels),
        )

    def _tokens(self, tokens: Tokens) -> tuple[TokenRecord, ...]:
        patches = iter(tokens.patches)
        records = []
        for kind, weight in zip(tokens.kinds, tokens.weights.tolist(), strict=True):
            if kind == "query":
                records.append(TokenRecord(kind="query", weight=weight))
                continue
            name, patch_id = next(patches)

            # Patches are numbered in each database anew: an id alone would name several.
            database = self._names[name]
            records.append(
                TokenRecord(kind="patch", patch_id=patch_id, database=database, weight=weight)
            )
        return tuple(records)

    def _negative(
        self, item: Sample, found: Mapping[PatchAt, PatchRecord]
    ) -> NegativeRecord | None:
        negative = None if item.conditioning is None else item.conditioning.negative
        if negative is None:
            return None
        tokens = negative.tokens
        patches = () if tokens is None else tokens.patches
        return NegativeRecord(
            texts=negative.texts,
            tokens=() if tokens is None else self._tokens(tokens),
            neighbors=tuple(self._credit(at, found[at], None) for at in patches),
            scale=negative.scale,
        )

    def _inversion(
        self, item: Sample, found: Mapping[PatchAt, PatchRecord]
    ) -> InversionRecord | None:
        tokens = None if item.conditioning is None else item.conditioning.inversion
        if tokens is None:
            return None
        credits = tuple(self._credit(at, found[at], None) for at in tokens.patches)
        return InversionRecord(tokens=self._tokens(tokens), neighbors=credits)

    def _credit(
        self, at: PatchAt, record: PatchRecord, similarity: float | None, weight: float = 1.0
    ) -> Credit:
        license = license_of(record.license)
        return Credit(
            patch_id=record.patch_id,
            database=self._names[at[0]],
            similarity=similarity,
            weight=weight,
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

    def _patch_records(self, samples: Sequence[Sample]) -> dict[PatchAt, PatchRecord]:
        """Return the records of all patches that conditioned pictures, or led them away."""
        if not self._names:
            return {}

        # Whoever led a picture away, or explains its start, is credited as well.
        asked = [at for item in samples for at in item.query.patches]
        for item in samples:
            negative = None if item.conditioning is None else item.conditioning.negative
            if negative is not None and negative.tokens is not None:
                asked += negative.tokens.patches
            inversion = None if item.conditioning is None else item.conditioning.inversion
            asked += () if inversion is None else inversion.patches

        # Each database is read once for the batch, in order of ids.
        found: dict[PatchAt, PatchRecord] = {}
        for name, database in self._by_name.items():
            if ids := sorted({patch_id for at, patch_id in asked if at == name}):
                records = database.records(np.array(ids, np.int64))
                found |= {(name, record.patch_id): record for record in records}
        return found

    def _label(self, query: Query) -> str:
        """Return a query's label without folders of this machine."""
        if query.kind == "image":
            return query.label.replace("\\", "/").rpartition("/")[2]
        if query.kind == "neighbors":
            return ", ".join(f"{self._names[name]}:{i}" for name, i in query.patches)
        return query.label

    @cached_property
    def _by_name(self) -> dict[str, RetrievalDatabase]:
        """The databases that are read, by the request's names; the first by the empty one too."""
        if not self.databases or not self.model.reads_neighbors:
            return {}
        return {"": next(iter(self.databases.values())), **self.databases}

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names that say nothing of this machine, by the request's names."""
        if not self._by_name:
            return {}
        names = public_names(self.databases)
        return {"": next(iter(names.values())), **names}

    @cached_property
    def _references(self) -> tuple[DatabaseReference, ...]:
        if not self._by_name:
            return ()
        return tuple(
            database_reference(database, self._names[name], self.weights.get(name, 1.0))
            for name, database in self.databases.items()
        )

    @cached_property
    def _model(self) -> ModelReference:
        return ModelReference(
            name=public_name(self.model.directory),
            digest=self.model.digest,
            parameters=num_parameters(self.model.generator.network),
        )

    @cached_property
    def _encoder(self) -> EncoderReference | None:
        if not self._by_name:
            return None
        database = self._by_name[""]
        name = portable_name(database.encoder_name)
        return EncoderReference(name=name, digest=database.encoder_digest)

    @cached_property
    def _software(self) -> SoftwareVersions:
        return software_on(self.model.device, self.model.generator.precision)


def public_names(databases: Mapping[str, RetrievalDatabase]) -> dict[str, str]:
    """Return for each database a name that is no path: the request's, or the last part of its
    place; with a number where two have one."""
    found: dict[str, str] = {}
    for name, database in databases.items():
        is_path = not name or "/" in name or "\\" in name
        plain = database_name(database) if is_path else name
        numbered = (f"{plain}-{number}" for number in count(2))
        found[name] = next(one for one in chain([plain], numbered) if one not in found.values())
    return found


def database_reference(
    database: RetrievalDatabase, name: str | None = None, weight: float = 1.0
) -> DatabaseReference:
    """Return what names a version of a database, without its place."""
    return DatabaseReference(
        name=database_name(database) if name is None else name,
        version=database.version.number,
        digest=digest_json(database.version.model_dump(mode="json")),
        weight=weight,
    )


def database_name(database: RetrievalDatabase) -> str:
    """Return the last part of a database's place."""
    return database.folder.url.rstrip("/").rpartition("/")[2]


def software_on(device: torch.device, precision: Precision = "auto") -> SoftwareVersions:
    """Return the versions of what computes on a device now, in a precision."""
    return SoftwareVersions(
        rdm=_own_version(),
        torch=torch.__version__,
        diffusers=version("diffusers"),
        device=describe_device(device),
        precision=acting_precision(device, precision),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
    )


def _own_version() -> str:
    try:
        return version("retrieval-diffusion")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0"
