"""Samples on disk: one PNG each, and one `samples.json` that says where every picture came from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rdm.database import RetrievalDatabase
from rdm.sampling.model import RetrievalModel, SampleSettings
from rdm.sampling.pipeline import Sample
from rdm.sampling.queries import Query
from rdm.storage import Folder

INDEX = "samples.json"


def write_samples(
    out: Path,
    samples: Sequence[Sample],
    model: RetrievalModel,
    database: RetrievalDatabase | None,
    settings: SampleSettings,
) -> None:
    """Write `00000.png`, ... and, last, `samples.json` with the provenance of each."""
    folder = Folder(out)
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        buffer = io.BytesIO()
        Image.fromarray(sample.pixels).save(buffer, "PNG")
        folder.write_bytes(f"{number:05d}.png", buffer.getvalue())
        rows.append({"file": f"{number:05d}.png", **sample.provenance(model, database, settings)})
    folder.write_json(INDEX, rows)


def read_samples(out: Path) -> list[Sample]:
    """Return what `write_samples` wrote (without the query's embedding); an unfinished folder has none."""
    folder = Folder(out)
    if not folder.exists(INDEX):
        return []
    samples = []
    for row in folder.read_json(INDEX):
        with Image.open(out / Path(row["file"]).name) as image:
            pixels = np.asarray(image.convert("RGB"))
        ids = np.array([neighbor["patch_id"] for neighbor in row["neighbors"]], np.int64)
        similarities = np.array([neighbor["similarity"] for neighbor in row["neighbors"]], np.float32)
        query = Query(row["kind"], row["label"], np.zeros(0, np.float32), ids, similarities)
        samples.append(Sample(query, row["seed"], pixels))
    return samples
