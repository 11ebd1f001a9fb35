"""What a build or an update will take, before it starts: bytes, hours, memory and money, from a short real trial.

The first photographs that are to be stored go through the stages themselves, in a folder that is deleted afterwards.
What was measured is scaled to all of them.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.compute import ComputeConfig, compute_pool
from rdm.config import Config
from rdm.database.build import DatabaseBuilder
from rdm.database.index import build_index
from rdm.database.ivf import IndexedRows
from rdm.encoders import load_encoder
from rdm.storage import Folder

ResultT = TypeVar("ResultT")


class EstimateConfig(Config):
    """How a trial is made and scaled."""

    num_photographs: int = Field(default=48, ge=0, description="photographs of the trial; 0: no trial, only counts")
    num_vectors: int = Field(default=10_000, ge=1, description="vectors, at most, of the trial of the index")
    num_workers: int = Field(default=1, ge=1, description="worker processes of the run")
    price_per_hour: float | None = Field(default=None, ge=0, description="of all machines of the run together")


def estimate(builder: DatabaseBuilder, config: EstimateConfig) -> dict[str, Any]:
    """Return what a run would take: `hours`, `num_bytes`, `worker_memory_bytes`, `cost`, and what they are made of.

    Network and disk are part of what is measured: photographs behind URLs are fetched for the trial. Neighbor tables
    are not counted. Without new photographs, or without a trial, the result is empty.

    Raises:
        FailureBudgetError: no photograph of the trial is usable.
    """
    count = builder.changes.new_rows.num_rows
    if not count or not config.num_photographs:
        return {}
    with tempfile.TemporaryDirectory(prefix="rdm-estimate-") as directory:
        trial = builder.trial(directory, min(count, config.num_photographs))
        return _scaled(trial, count, config)


def _scaled(trial: DatabaseBuilder, count: int, config: EstimateConfig) -> dict[str, Any]:
    _, load_seconds = _timed(lambda: load_encoder(trial.config.encoder, precision=trial.precision))
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        _, ingest_seconds = _timed(lambda: trial.ingest(pool))
        patches, patchify_seconds = _timed(lambda: trial.patchify(pool))
        _, embed_seconds = _timed(lambda: trial.embed(pool))
    scale = count / trial.changes.new_rows.num_rows
    num_patches = round(patches["num_patches"] * scale)
    index_seconds, index_bytes = _index_trial(trial, num_patches, config)
    seconds = {
        "ingest": ingest_seconds * scale / config.num_workers,
        "patchify": patchify_seconds * scale,
        "embed": embed_seconds * scale / config.num_workers + load_seconds,
        "index": index_seconds,
    }
    hours = sum(seconds.values()) / 3600
    return {
        "trial_photographs": trial.changes.new_rows.num_rows,
        "patches": num_patches,
        "num_bytes": round(_row_bytes(trial.folder) * scale) + index_bytes,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "hours": round(hours, 6),  # to the hundredth of a second, as the stages
        "workers": config.num_workers,
        "worker_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cost": None if config.price_per_hour is None else round(hours * config.price_per_hour, 2),
    }


def _timed(work: Callable[[], ResultT]) -> tuple[ResultT, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _row_bytes(folder: Folder) -> float:
    """Return the bytes of the trial's parts, without what a table takes that has no rows."""
    total = 0
    for directory in ("images", "patches", "dropped", "img_emb", "metadata"):
        for path in folder.files(directory):
            total += folder.size(path)
            if path.endswith(".parquet"):
                table = folder.read_table(path)
                folder.write_table("empty.parquet", table.slice(0, 0))
                total -= folder.size("empty.parquet")
    return total


def _index_trial(trial: DatabaseBuilder, num_patches: int, config: EstimateConfig) -> tuple[float, int]:
    """Return the seconds and bytes of an index over so many vectors, in proportion to one over vectors like theirs."""
    count = min(num_patches, config.num_vectors)
    if count == 0:
        return 0.0, 0
    parts = [np.asarray(trial.folder.read_array(path)) for path in trial.folder.files("img_emb")]
    vectors = _similar(np.concatenate(parts), count)
    trial.folder.write_array("trial.npy", vectors)
    rows = IndexedRows(trial.folder, ("trial.npy",), np.zeros(0, np.int64))
    place = "index/trial"
    _, seconds = _timed(lambda: build_index(rows, trial.config.index, place))
    size = sum(trial.folder.size(path) for path in trial.folder.files(place))
    return seconds * num_patches / count, round(size * num_patches / count)


def _similar(vectors: NDArray[np.float16], count: int) -> NDArray[np.float16]:
    """Return so many unit vectors that lie about those given."""
    rng = np.random.default_rng(0)
    picked = vectors[np.arange(count) % len(vectors)].astype(np.float32)
    moved = picked + rng.normal(scale=0.5 / np.sqrt(picked.shape[1]), size=picked.shape)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float16)
