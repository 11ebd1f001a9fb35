"""Workers that die, by a signal at random moments or at their memory limit; and a cluster that
others started."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from PIL import Image

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import BuildConfig, DatabaseBuilder, NeighborConfig, build_neighbors
from rdm.database.building.jobs import run_build
from rdm.database.building.stages import embed, ingest, patchify
from rdm.errors import RdmError
from rdm.sources import CropConfig, QuerySetConfig
from rdm.storage import Folder

Contents = Callable[[Path], dict[str, bytes]]
CROP = CropConfig(frame_size=40, patch_size=24)
STARTED_SECONDS = 15
LOCAL = ComputeConfig(num_workers=2, memory_fraction=0.4, retries=20)


def config_of(photos: Path) -> BuildConfig:
    return BuildConfig(source=f"folder://{photos}", images_per_shard=1, crop=CROP)


def build(root: Path, photos: Path, compute: ComputeConfig) -> None:
    run_build(DatabaseBuilder(str(root), config_of(photos)), compute)


def look_up(root: Path, photos: Path, compute: ComputeConfig) -> None:
    queries = QuerySetConfig(source=f"folder://{photos}", crop=CROP, images_per_shard=1)
    with compute_pool(compute) as pool:
        build_neighbors(str(root), "train", NeighborConfig(queries=queries, k_stored=5), pool)


def workers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("spawn_main" in part for part in _command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def killing(count: int, seed: int, begin: Path) -> Iterator[list[int]]:
    """Once a path exists, kill one worker after another at random moments; yield the list of those
    killed.

    A worker that is still starting is left alone: Dask does not start it a second time.
    """
    rng, done, killed = random.Random(seed), threading.Event(), list[int]()

    def kill() -> None:
        while len(killed) < count and not done.wait(rng.uniform(0.1, 3)):
            running = [
                worker
                for worker in workers()
                if time.time() - worker.create_time() > STARTED_SECONDS
            ]
            if begin.exists() and running:
                victim = rng.choice(running)
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_workers_change_nothing(photos: Path, tmp_path: Path, contents: Contents) -> None:
    inline = ComputeConfig(dask="inline")
    build(tmp_path / "calm", photos, inline)
    with killing(4, seed=0, begin=tmp_path / "db" / "_markers") as killed:
        build(tmp_path / "db", photos, LOCAL)
    assert killed, "no worker was killed while the database was built"
    assert contents(tmp_path / "db") == contents(tmp_path / "calm")
    look_up(tmp_path / "calm", photos, inline)
    with killing(4, seed=1, begin=tmp_path / "db" / "neighbors") as killed:
        look_up(tmp_path / "db", photos, LOCAL)
    assert killed, "no worker was killed while neighbors were looked up"
    assert contents(tmp_path / "db") == contents(tmp_path / "calm")


def encoding_bytes() -> int:
    """Return the peak memory of a process that encodes a picture as a worker does."""
    program = """
import resource
import distributed
import numpy as np
from rdm.database.building.embed import load_encoder
load_encoder("assets://encoder-lite").encode_images(np.zeros((8, 3, 224, 224), np.uint8))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_worker_at_its_memory_limit_costs_one_shard(
    photos: Path, tmp_path: Path, contents: Contents
) -> None:
    Image.radial_gradient("L").resize((10_900, 10_900)).convert("RGB").save(
        photos / "p03b.jpg", quality=50
    )
    builder = DatabaseBuilder(str(tmp_path / "db"), config_of(photos))
    inline = ComputeConfig(dask="inline")
    with builder.writing() as plan, compute_pool(inline) as pool:
        patchify(ingest(plan, pool), pool)
    # 119 million pixels need 357 MB
    limit = (encoding_bytes() + 150_000_000) / psutil.virtual_memory().total
    small = ComputeConfig(num_workers=1, memory_fraction=limit, retries=1)
    with builder.writing() as plan, compute_pool(small) as pool:
        patches = patchify(ingest(plan, pool), pool)
        with pytest.raises(RdmError, match="every worker that took the shard died") as caught:
            embed(patches, pool)
    assert caught.value.where == "shard 4"
    assert len(Folder(tmp_path / "db").names("img_emb")) == 12, "all other shards were finished"
    build(tmp_path / "db", photos, inline)
    build(tmp_path / "calm", photos, inline)
    assert contents(tmp_path / "db") == contents(tmp_path / "calm")


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a scheduler with two workers, each a program of its own."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    commands = [[*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]]
    commands += [[*dask, "worker", "--nthreads", "1", "--no-dashboard"] for _ in range(2)]
    with open(tmp_path / "dask.log", "wb") as log:
        programs = [
            subprocess.Popen(
                [*command, "--scheduler-file", str(file)], stdout=log, stderr=log, cwd=tmp_path
            )
            for command in commands
        ]
        deadline = time.monotonic() + 120
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        try:
            yield json.loads(file.read_text())["address"]
        finally:
            for program in reversed(programs):
                program.terminate()
            for program in programs:
                program.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_existing_cluster_makes_the_same_bytes(
    scheduler: str, photos: Path, tmp_path: Path, contents: Contents
) -> None:
    inline = ComputeConfig(dask="inline")
    for root, compute in (
        (tmp_path / "calm", inline),
        (tmp_path / "db", ComputeConfig(dask=scheduler)),
    ):
        build(root, photos, compute)
        look_up(root, photos, compute)
    assert contents(tmp_path / "db") == contents(tmp_path / "calm")
