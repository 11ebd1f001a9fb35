"""Estimate bytes, hours, memory and money of a build or update from a short real trial.

The first photographs that are to be stored go through the stages themselves, in a folder that is
deleted afterwards. What was measured is scaled to all of them. An update writes and audits the
whole index, however little is new.
"""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.device import DeviceName, worker_device
from rdm.config import Config
from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.checks import check_index_fits
from rdm.database.building.results import Estimate
from rdm.database.building.stage_results import Embedded
from rdm.database.building.stages import add_parts
from rdm.database.contract import PHOTOGRAPH_DIRECTORIES
from rdm.database.search.index import ParentIndex, build_index, update_index
from rdm.database.search.sharded_index import IndexedRows
from rdm.database.settings import settings_of
from rdm.encoders import Encoder, load_encoder
from rdm.errors import FailureBudgetError
from rdm.storage import Folder

ResultT = TypeVar("ResultT")


class EstimateConfig(Config):
    """Settings of a trial: its size, and the run to which it is scaled."""

    num_photographs: int = Field(
        default=48, ge=0, description="photographs of the trial; 0: no trial, only counts"
    )
    num_vectors: int = Field(
        default=10_000, ge=1, description="vectors, at most, of the trial of the index"
    )
    num_workers: int = Field(default=1, ge=1, description="worker processes of the run")
    device: DeviceName = Field(default="auto", description="what the trial's networks compute on")
    price_per_hour: float | None = Field(
        default=None, ge=0, description="of all machines of the run together"
    )


def estimate(plan: BuildPlan, config: EstimateConfig) -> Estimate | None:
    """Return what a run would take; None without new photographs, or without a trial.

    Network and disk are part of what is measured: photographs behind URLs are fetched for the
    trial. `num_bytes` is what is written; older versions' indexes that go are not subtracted.
    Neighbor tables are not counted. Where no photograph of the trial is usable, only that is known.

    Raises:
        DatabaseError: no index of so many patches fits into the memory that the settings allow.
    """
    count = plan.changes.diff.new_rows.num_rows
    if not count or not config.num_photographs:
        return None

    # Every photograph of the trial may be unusable: that is a finding, not a failure.
    with tempfile.TemporaryDirectory(prefix="rdm-estimate-") as directory:
        trial = plan.trial(directory, min(count, config.num_photographs))
        try:
            return _scaled(plan, trial, config)
        except FailureBudgetError as error:
            tried = trial.changes.diff.new_rows.num_rows
            return Estimate(
                trial_photographs=tried,
                trial_failed=error.what,
                num_bytes=None,
                hours=None,
                cost=None,
            )


def _scaled(plan: BuildPlan, trial: BuildPlan, config: EstimateConfig) -> Estimate:
    """Run the trial's stages, and scale what they took to all new photographs."""
    # Loading the encoder is measured apart: a run does it once, however many photographs there are.
    clock = _Clock()
    _, load_seconds = _timed(lambda: _load(trial, config))
    with compute_pool(ComputeConfig(dask="inline", device=config.device)) as pool:
        added = add_parts(trial, pool, clock.run)
    assert isinstance(added, Embedded), "a trial starts from nothing, so what it stores is new"
    patches = added.patches.facts

    # Ingest and embed run on the workers; patchify writes one shard after another.
    count, tried = plan.changes.diff.new_rows.num_rows, trial.changes.diff.new_rows.num_rows
    scale = count / tried
    num_patches = round(patches.num_patches * scale)

    index_seconds, index_bytes = _index_takes(plan, trial, num_patches, config)

    seconds = {
        "ingest": clock.seconds["ingest"] * scale / config.num_workers,
        "patchify": clock.seconds["patchify"] * scale,
        "embed": clock.seconds["embed"] * scale / config.num_workers + load_seconds,
        "index": index_seconds,
    }

    hours = sum(seconds.values()) / 3600
    return Estimate(
        trial_photographs=tried,
        patches=num_patches,
        patch_pixels=patches.patch_pixels,
        num_bytes=round(_part_bytes(trial, count)) + index_bytes,
        seconds={stage: round(value, 2) for stage, value in seconds.items()},
        hours=round(hours, 6),  # to the hundredth of a second, as the stages
        workers=config.num_workers,
        worker_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        cost=None if config.price_per_hour is None else round(hours * config.price_per_hour, 2),
    )


class _Clock:
    """Measures stages: `seconds` by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], ResultT], /) -> ResultT:
        """See StageRunner."""
        result, self.seconds[name] = _timed(work)
        return result


def _load(trial: BuildPlan, config: EstimateConfig) -> Encoder:
    device = str(worker_device(config.device))
    return load_encoder(trial.config.encoder, device=device, precision=trial.precision)


def _timed(work: Callable[[], ResultT]) -> tuple[ResultT, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _part_bytes(trial: BuildPlan, count: int) -> float:
    """Return the bytes of so many photographs' parts.

    The trial's rows grow in proportion; a table's head is paid once a shard, whatever its rows.
    """
    rows = heads = 0
    folder = trial.folder
    # The size of an empty table of the same schema is that of its head.
    for directory in PHOTOGRAPH_DIRECTORIES:
        for path in folder.files(directory):
            rows += folder.size(path)
            if path.endswith(".parquet"):
                folder.write_table("empty.parquet", folder.read_table(path).slice(0, 0))
                heads += folder.size("empty.parquet")

    size, tried = trial.config.images_per_shard, trial.changes.diff.new_rows.num_rows
    shards = math.ceil(count / size) / math.ceil(tried / size)
    return (rows - heads) * count / tried + heads * shards


def _index_takes(
    plan: BuildPlan, trial: BuildPlan, num_added: int, config: EstimateConfig
) -> tuple[float, int]:
    """Return the seconds and bytes that the index takes once so many patches are added.

    The seconds are in proportion to those of an index over vectors like the trial's, which is built
    or brought up to date as the real one will be.
    """
    # The index keeps its lists where the settings stay: it is extended, not built anew.
    parent, settings = plan.parent, plan.config.index
    extended = parent is not None and settings_of(parent).index == settings
    num_held = parent.num_live_patches - len(plan.changes.newly_dead) if parent is not None else 0
    total = num_held + num_added

    count = min(total, config.num_vectors)
    check_index_fits(parent, plan.config, total)
    if num_added == 0:
        return 0.0, 0

    # Build a small index over vectors like the trial's.
    parts = [np.asarray(trial.folder.read_array(path)) for path in trial.folder.files("img_emb")]
    vectors = _similar(np.concatenate(parts), count)
    num_old = max(1, count * num_held // total) if extended else count
    rows, old = _trial_rows(trial.folder, vectors, num_old)

    infos, seconds = _timed(lambda: build_index(old, settings, "index/built"))
    size = infos.num_bytes * total / count

    # An update writes and audits the whole index, so its time grows with all rows, not the new.
    if parent is not None and extended:
        before = ParentIndex("index/built", infos, num_old, np.zeros(0, np.int64))
        _, seconds = _timed(lambda: update_index(rows, settings, "index/updated", before))
        size = parent.index.num_bytes * total / parent.index.num_vectors
    return seconds * total / count, round(size)


def _trial_rows(
    folder: Folder, vectors: NDArray[np.float16], num_old: int
) -> tuple[IndexedRows, IndexedRows]:
    """Store vectors in two parts; return the rows of both, and those of the first `num_old`."""
    paths = ("old.npy", "new.npy")
    for path, part in zip(paths, (vectors[:num_old], vectors[num_old:]), strict=True):
        folder.write_array(path, part)

    nobody = np.zeros(0, np.int64)
    return IndexedRows(folder, paths, nobody), IndexedRows(folder, paths[:1], nobody)


def _similar(vectors: NDArray[np.float16], count: int) -> NDArray[np.float16]:
    """Return `count` unit vectors that lie about the given ones."""
    rng = np.random.default_rng(0)
    # Each one moved by a random step of length about 0.5: near the given vectors, but not equal.
    picked = vectors[np.arange(count) % len(vectors)].astype(np.float32)
    moved = picked + rng.normal(scale=0.5 / np.sqrt(picked.shape[1]), size=picked.shape)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float16)
