"""Look-ups: from a request to what conditions its pictures, in one version of each database.

No network that draws is touched here, and no database where pictures are drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rdm.config import Record
from rdm.generators.generator import GeneratorConfig
from rdm.generators.model_folder import ModelInfo
from rdm.sampling.recipe.record import Credit
from rdm.sampling.request.sample_request import Request
from rdm.sampling.retrieval.conditioning import Conditioning
from rdm.sampling.retrieval.look_up import LookUp
from rdm.serving.databases import OpenDatabase

PatchAt = tuple[str, int]


class DatabaseVersion(Record):
    """The version of a database that something was looked up in."""

    name: str
    version: int


@dataclass(frozen=True)
class Found:
    """What a request found.

    Attributes:
        request: what was asked for.
        databases: the versions, by name.
        asked: what conditions each picture.
        neighbors: those of each picture, nearest first.
        milliseconds: that the look-up took.
    """

    request: Request
    databases: Mapping[str, OpenDatabase]
    asked: tuple[Conditioning, ...]
    neighbors: tuple[tuple[Credit, ...], ...]
    milliseconds: float

    @property
    def label(self) -> str:
        """The query in words."""
        return self.asked[0].query.label

    @property
    def versions(self) -> tuple[DatabaseVersion, ...]:
        """The versions that were read."""
        return tuple(
            DatabaseVersion(name=name, version=one.version) for name, one in self.databases.items()
        )

    @property
    def all_neighbors(self) -> tuple[Credit, ...]:
        """The neighbors of every picture, each once."""
        found = {(one.database, one.patch_id): one for row in self.neighbors for one in row}
        return tuple(found.values())


def look_up(
    info: ModelInfo | None,
    databases: Mapping[str, OpenDatabase],
    request: Request,
    open_image: Callable[[str], Image.Image],
) -> Found:
    """Return what conditions the pictures of a request.

    Args:
        info: of the model that will draw; None: only the neighbors are wanted.
        databases: those that the request names, by name, the first one first.
        request: what is asked for.
        open_image: returns an upload by its id.

    Raises:
        RdmError: see `rdm.sampling.look_up`.
    """
    started = time.perf_counter()

    # Without a model: a search alone, by the database's own encoder.
    if info is None:
        digest = next(iter(databases.values())).database.encoder_digest
        info = ModelInfo(generator=GeneratorConfig(), encoder_digest=digest)

    opened = {name: one.database for name, one in databases.items()}
    looked_up = LookUp(request, info, opened if info.reads_neighbors else {}, open_image=open_image)

    # A model that reads no neighbors has no versions to name either.
    asked = looked_up.rows(0, len(looked_up))
    used = databases if info.reads_neighbors else {}
    neighbors = _neighbors(asked, used)
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    return Found(request, used, tuple(asked), neighbors, milliseconds)


def _neighbors(
    asked: Sequence[Conditioning], databases: Mapping[str, OpenDatabase]
) -> tuple[tuple[Credit, ...], ...]:
    """Return the neighbors of each picture, from one read of each database."""
    if not databases:
        return ((),) * len(asked)

    # Each database is asked once for all pictures: they share most of their neighbors.
    first = next(iter(databases))
    patches = {(name or first, patch) for one in asked for name, patch in one.query.patches}
    known: dict[PatchAt, Credit] = {}
    for name, opened in databases.items():
        ids = sorted(patch for at, patch in patches if at == name)
        if ids:
            found = opened.credits(np.array(ids, np.int64))
            known |= {(name, one.patch_id): one for one in found}

    rows = []
    for one in asked:
        query = one.query
        weights = query.weights or (1.0,) * len(query.patches)
        row = zip(query.patches, query.similarities.tolist(), weights, strict=True)
        rows.append(
            tuple(
                known[name or first, patch].model_copy(
                    update={"similarity": round(similarity, 4), "weight": weight}
                )
                for (name, patch), similarity, weight in row
            )
        )
    return tuple(rows)
