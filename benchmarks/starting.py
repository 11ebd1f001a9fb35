"""What starting costs beside working, on a small job: the quickstart's stages before its training.

All stages run in one process with one warm cluster, as the quickstart runs them. The processor
seconds of each (user and system, of this process and its workers) are compared with those of its
bare network: as many pictures, in memory already, through the same network in one thread. Processor
seconds depend less than the clock on what else a machine does. Where RDM_OTHER names the program
`rdm` of another release (another checkout's `.venv/bin/rdm`), the stages are also run as commands,
of that release and of this one.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch

from rdm.compute import Clusters, ComputeConfig, compute_pool
from rdm.database import DatabaseBuilder, build_neighbors
from rdm.database.building.jobs import build_config
from rdm.database.building.stages import (
    commit,
    embed,
    index_patches,
    ingest,
    patchify,
    repair_neighbors,
)
from rdm.encoders import load_encoder
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.training.data.latent_cache import build_cache
from rdm.training.presets import cache_config, neighbor_config

DATABASE_HALF, QUERY_HALF = (
    "samples://openimages-birds/database",
    "samples://openimages-birds/queries",
)
BARE_PICTURES = 256


def run() -> str:
    """Return the ratios in words."""
    with tempfile.TemporaryDirectory() as directory:
        started = _tree_seconds()
        stages = _run_stages(Path(directory) / "warm")
        words = [
            f"{name} {seconds:.1f} s, {ratio:.2f} times its network"
            for name, seconds, ratio in _ratios(stages)
        ]
        words.append(f"all with one warm cluster {_tree_seconds() - started:.1f} s")
        if other := os.environ.get("RDM_OTHER"):
            ours = _command_seconds(Path(sys.executable).with_name("rdm"), Path(directory) / "ours")
            theirs = _command_seconds(Path(other), Path(directory) / "theirs")
            words.append(f"as commands {ours:.1f} s, of {other} {theirs:.1f} s")
    return "; ".join(words)


def _run_stages(base: Path) -> dict[str, tuple[int, float]]:
    """Run the stages; return, by name, how many pictures each encoded and its processor seconds."""
    stages: dict[str, tuple[int, float]] = {}
    with Clusters() as clusters:
        for name, source in (("embed", DATABASE_HALF), ("embed again", QUERY_HALF)):
            builder = DatabaseBuilder(str(base / name), build_config(source))
            with builder.writing() as plan, compute_pool(ComputeConfig(), clusters) as pool:
                patches = patchify(ingest(plan, pool), pool)
                with _measured(stages, name) as count:
                    embedded = embed(patches, pool)
                    count.append(embedded.facts.num_patches)
                commit(repair_neighbors(index_patches(embedded, pool), pool))
        with compute_pool(ComputeConfig(), clusters) as pool:
            with _measured(stages, "neighbors") as count:
                database = str(base / "embed")
                count.append(
                    build_neighbors(
                        database, "train", neighbor_config(QUERY_HALF), pool
                    ).num_queries
                )
            with _measured(stages, "cache") as count:
                count.append(
                    build_cache(str(base / "cache"), cache_config(QUERY_HALF), pool).num_latents
                )
    return stages


@contextmanager
def _measured(stages: dict[str, tuple[int, float]], name: str) -> Iterator[list[int]]:
    """Record a stage; the body puts the number of its pictures into the yielded list."""
    count: list[int] = []
    before = _tree_seconds()
    yield count
    stages[name] = count[0], _tree_seconds() - before


def _tree_seconds() -> float:
    """Return the processor seconds of this process and of all that it started, ended ones too."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [own, *own.children(recursive=True)])


def _ratios(stages: dict[str, tuple[int, float]]) -> list[tuple[str, float, float]]:
    """Return name, processor seconds, and their ratio to the bare network's, of each stage."""
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (BARE_PICTURES, 3, 224, 224), np.uint8)
    encoder, first_stage = (
        load_encoder("assets://encoder-lite"),
        load_autoencoder("assets://autoencoder-kl-f4"),
    )
    small = torch.from_numpy(pixels[:, :, :64, :64].copy())
    encoding = _seconds_each(lambda: encoder.encode_images(pixels))
    compressing = _seconds_each(lambda: first_stage.encode_moments(small))
    bare = {name: compressing if name == "cache" else encoding for name in stages}
    return [
        (name, seconds, seconds / (count * bare[name])) for name, (count, seconds) in stages.items()
    ]


def _seconds_each(work: Callable[[], object]) -> float:
    """Return the processor seconds a picture of work on BARE_PICTURES, after a warm-up."""
    work()
    before = time.process_time()
    work()
    return (time.process_time() - before) / BARE_PICTURES


def _command_seconds(rdm: Path, base: Path) -> float:
    """Return the processor seconds of the four commands that do what the stages do."""
    database, before = str(base / "database"), resource.getrusage(resource.RUSAGE_CHILDREN)
    for arguments in (
        ("database", "build", "--root", database, "--source", DATABASE_HALF),
        ("database", "build", "--root", str(base / "swapped"), "--source", QUERY_HALF),
        ("neighbors", "build", "--root", database, "--queries", QUERY_HALF, "--name", "train"),
        ("cache", "build", "--queries", QUERY_HALF, "--out", str(base / "cache")),
    ):
        subprocess.run([rdm, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    print(run())
