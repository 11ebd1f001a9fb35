"""The quickstart's pictures: what is drawn for the report, resumable group by group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config, digest_json
from rdm.database import RetrievalDatabase
from rdm.report.quickstart.readout import SwapReadout, measure_swap
from rdm.sampling import Sample, SampleSettings, open_model, sample, text_queries
from rdm.sampling.output import INDEX, read_samples, write_samples
from rdm.sampling.retrieval.queries import (
    Query,
    image_queries,
    query_set_proposal,
    unconditional_queries,
)
from rdm.sources import QuerySet, QuerySetConfig
from rdm.sources.query_set import is_held_out
from rdm.storage import Folder, Markers

READOUT = "readout.json"


class ShowcaseConfig(Config):
    """What the report draws."""

    texts: tuple[str, ...] = (
        "a bird flying in the blue sky",
        "a small bird on a green branch",
        "a duck swimming on the water",
        "an owl",
    )
    num_seeds: int = Field(default=4, ge=1, description="pictures per text or image query")
    num_images: int = Field(default=4, ge=1, description="held-out photographs used as queries")
    num_unconditional: int = Field(default=12, ge=1)
    top_m: float = Field(
        default=0.25, gt=0, le=1, description="share of the likeliest patches that p_D keeps"
    )
    settings: SampleSettings = SampleSettings(num_steps=50, guidance_scale=1.5, batch_size=32)


@dataclass(frozen=True)
class ShowcaseInputs:
    """What the pictures are drawn from."""

    model: Path
    database: str
    swapped: str
    queries: QuerySetConfig
    held_out_fraction: float


def held_out_pictures(
    queries: QuerySetConfig, fraction: float, count: int
) -> dict[str, NDArray[np.uint8]]:
    """Return the first crop of the first held-out photographs, by image id, native size."""
    found: dict[str, NDArray[np.uint8]] = {}
    opened = QuerySet(queries)
    for stem in opened.stems:
        for crop in opened.crops(stem, []):
            if (
                len(found) < count
                and crop.key.endswith("/0")
                and is_held_out(crop.image_id, fraction)
            ):
                found[crop.image_id] = np.asarray(crop.image)
    return found


def draw_showcase(inputs: ShowcaseInputs, config: ShowcaseConfig, out: Path) -> int:
    """Draw the groups `text`, `image`, `unconditional` and `swapped` below a folder; return the
    number of pictures.

    `swapped` has the texts and seeds of `text`, with the other database. A group that stands is not
    drawn again. `readout.json` says what the swap does, see `measure_swap`.
    """
    from PIL import Image

    model = open_model(inputs.model)
    database, swapped = (
        RetrievalDatabase.open(inputs.database),
        RetrievalDatabase.open(inputs.swapped),
    )
    k, seeds = config.settings.k, list(range(config.num_seeds))
    pictures = held_out_pictures(inputs.queries, inputs.held_out_fraction, config.num_images)

    # Queries are made by functions: a group that is drawn already needs none.
    def unconditional() -> list[Query]:
        proposal = query_set_proposal(database, model.info.queries_digest or "").truncated(
            config.top_m
        )
        return unconditional_queries(database, proposal, range(config.num_unconditional), k)

    groups: dict[str, tuple[RetrievalDatabase, Callable[[], Sequence[Query]], int]] = {
        "text": (database, lambda: text_queries(database, config.texts, k), len(seeds)),
        "image": (
            database,
            lambda: image_queries(
                database, [Image.fromarray(p) for p in pictures.values()], list(pictures), k
            ),
            len(seeds),
        ),
        "unconditional": (database, unconditional, 1),
        "swapped": (swapped, lambda: text_queries(swapped, config.texts, k), len(seeds)),
    }

    # A group is drawn again when the model, a database or the settings changed.
    total = 0
    markers = Markers(Folder(out), "draw")
    key = digest_json(
        [
            config.model_dump(mode="json"),
            _model_digest(inputs.model),
            database.version.number,
            database.version.source_fingerprint,
            swapped.version.source_fingerprint,
        ]
    )

    for name, (source, make_queries, repeats) in groups.items():
        if markers.find(name, key) is None:
            queries = [query for query in make_queries() for _ in range(repeats)]
            numbers = (
                list(range(len(queries))) if repeats == 1 else seeds * (len(queries) // repeats)
            )
            drawn = sample(model, source, queries, numbers, config.settings)
            count = write_samples(out / name, drawn, model, source, config.settings)
            markers.write(name, key, [f"{name}/{INDEX}"], {"count": count})
        total += len(read_samples(out / name))

    # How far the expectation follows the neighbors.
    if markers.find("readout", key) is None:
        found = measure_swap(model, database, swapped, config.texts, k)
        Folder(out).write_record(READOUT, found)
        markers.write("readout", key, [READOUT], {})
    return total


def read_readout(out: Path) -> SwapReadout:
    """Return what was measured of the swap."""
    return Folder(out).read_record(READOUT, SwapReadout)


def read_showcase(out: Path, group: str) -> list[Sample]:
    """Return the pictures of a group."""
    return read_samples(out / group)


def _model_digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
