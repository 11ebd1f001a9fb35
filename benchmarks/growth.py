"""How the stages grow with the database: seconds and peak memory at several sizes, and the
exponents.

Each measurement runs in a process of its own, whose peak memory is its alone. Embedding is that of
one worker with a fake encoder, a random projection of 16 px: what remains is reading, decoding,
cutting and writing. `python -m benchmarks.growth SIZE ...` takes other sizes.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from benchmarks.clusters import DIM, write_clusters
from benchmarks.embedding import SIDE, write_tar
from rdm.compute import ComputeConfig, compute_pool
from rdm.database import BuildConfig, DatabaseBuilder
from rdm.database.building import embed
from rdm.database.building.stages import ingest, patchify
from rdm.database.contract import patches_path
from rdm.database.search.approximate import open_index
from rdm.database.search.exact import blocks_of, exact_search
from rdm.database.search.index import ParentIndex, build_index, update_index
from rdm.database.search.index_settings import IndexConfig
from rdm.database.search.sharded_index import IndexedRows
from rdm.encoders import Encoder
from rdm.sources import CropConfig
from rdm.storage import Folder, IndexFacts

SIZES = (10_000, 100_000)
PART_ROWS = 2_500
QUERIES = 500
CONFIG = IndexConfig(audit_queries=200)


def run(sizes: tuple[int, ...] = SIZES) -> str:
    """Return a table in words: stage by stage, seconds and megabytes per size, and the fitted
    exponents."""
    measured: dict[str, list[tuple[int, float, float]]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as directory:
            for stage in STAGES:
                seconds, megabytes = _measured(stage, rows, directory)
                measured.setdefault(stage, []).append((rows, seconds, megabytes))
    return "; ".join(
        _in_words(stage, found) for stage, found in measured.items() if stage not in _PREPARED
    )


def _measured(stage: str, rows: int, directory: str) -> tuple[float, float]:
    program = (
        "import sys; from benchmarks.growth import main; main(sys.argv[1], "
        "int(sys.argv[2]), sys.argv[3])"
    )
    place = str(Path(directory, "embed" if stage in ("patches", "embed") else "index"))
    command = [sys.executable, "-c", program, stage, str(rows), place]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def _in_words(stage: str, found: list[tuple[int, float, float]]) -> str:
    points = ", ".join(
        f"{rows:,} rows {seconds:.2f} s {megabytes:.0f} MB" for rows, seconds, megabytes in found
    )
    rows, seconds, megabytes = (np.log([point[n] for point in found]) for n in range(3))
    time_exponent, memory_exponent = (
        np.polyfit(rows, values, 1)[0] for values in (seconds, megabytes)
    )
    return (
        f"{stage}: {points}, time ~ rows^{time_exponent:.2f}, memory ~ rows^{memory_exponent:.2f}"
    )


class _FakeEncoder:
    """Costs next to nothing: what remains of embedding is the rest of it."""

    embedding_dim = DIM

    def __init__(self) -> None:
        self._projection = (
            np.random.default_rng(0).standard_normal((3 * 16 * 16, DIM)).astype(np.float32)
        )

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((16, 16)), np.uint8).transpose(2, 0, 1)

    def encode_images(self, batch: np.ndarray) -> np.ndarray:
        return (batch.reshape(len(batch), -1) / np.float32(255)) @ self._projection


def _patches(folder: Folder, rows: int) -> None:
    """Store 100 photographs of 25 patches, and name them again in every part: pixels cost what they
    cost."""
    tar = folder.local("").parent / "photographs.tar"
    write_tar(tar, PART_ROWS // 25)
    crop = CropConfig(mode="grid", frame_size=SIDE, patch_size=SIDE // 5)
    config = BuildConfig(source=f"webdataset://{tar}", crop=crop)
    builder = DatabaseBuilder(str(folder.local("")), config)
    with builder.writing() as plan, compute_pool(ComputeConfig(dask="inline")) as pool:
        patchify(ingest(plan, pool), pool)
    patches = folder.read_table(patches_path(0))
    assert patches.num_rows == PART_ROWS
    for part in range(1, rows // PART_ROWS):
        folder.write_table(patches_path(part), patches)


def _embed(folder: Folder, rows: int) -> None:
    encoder = cast(Encoder, _FakeEncoder())
    embed.load_encoder = lambda *args, **kwargs: encoder
    for part in range(rows // PART_ROWS):
        embed.embed_part(embed.EmbedTask(folder, part, "fake", "", 64))


def _vectors(folder: Folder, rows: int) -> None:
    vectors = write_clusters(folder.local("all.npy"), rows + rows // 100)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        folder.write_array(
            f"img_emb/{number:05d}.npy", vectors[start : min(start + PART_ROWS, rows)]
        )
    folder.write_array("added.npy", vectors[rows:])


def _indexed(folder: Folder, *more: str) -> IndexedRows:
    return IndexedRows(
        folder, (*(f"img_emb/{name}" for name in folder.names("img_emb")), *more), _NONE
    )


def _index(folder: Folder, rows: int) -> None:
    del rows
    build_index(_indexed(folder), CONFIG, "index/1")


def _add(folder: Folder, rows: int) -> None:
    facts = folder.read_record("index/1/index_infos.json", IndexFacts)
    update_index(
        _indexed(folder, "added.npy"), CONFIG, "index/2", ParentIndex("index/1", facts, rows, _NONE)
    )


def _exact(folder: Folder, rows: int) -> None:
    del rows
    exact_search(_queries(folder), blocks_of(_indexed(folder).parts), 20, excluded=_NONE)


def _approximate(folder: Folder, rows: int) -> None:
    del rows
    open_index(folder, "index/1").search(_queries(folder).astype(np.float32), 20)


def _queries(folder: Folder) -> np.ndarray:
    vectors = folder.read_array("all.npy")
    return np.array(vectors[:: math.ceil(len(vectors) / QUERIES)])


_NONE = np.zeros(0, np.int64)
_PREPARED = ("patches", "vectors")
STAGES: dict[str, Callable[[Folder, int], None]] = {
    "patches": _patches,
    "embed": _embed,
    "vectors": _vectors,
    "index": _index,
    "neighbors of 500, exact": _exact,
    "neighbors of 500, approximate": _approximate,
    "update: add 1% to the index": _add,
}


def main(stage: str, rows: int, directory: str) -> None:
    """Measure one stage in this process."""
    Path(directory).mkdir(exist_ok=True)
    started = time.perf_counter()
    STAGES[stage](Folder(directory), rows)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]))


if __name__ == "__main__":
    print(run(tuple(map(int, sys.argv[1:])) or SIZES).replace("; ", "\n"))
