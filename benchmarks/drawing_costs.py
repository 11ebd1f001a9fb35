"""What drawing takes beside the network: look-up, attention maps, encoding, starting.

`assets://rdm-64` at 20 steps of DPM-Solver++, 16 pictures unless said otherwise, one thread,
processor seconds. The look-up is among 1,000,000 random unit vectors of 512 numbers on disk
(RDM_BENCHMARK_ROWS), exactly and by an inverted file; a text is one query for all of its seeds, and
unconditional pictures are one each. The research pipeline of diffusers encodes the k retrieved
pictures on every call, which is done here with the same encoder and database. Starting is that of a
process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks.timing import paired_ratio
from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.building.jobs import run_build
from rdm.database.search.exact import blocks_of, exact_search, quantize
from rdm.generators.model_folder import Model, open_model
from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.drawing.attribution import attention_maps
from rdm.sampling.drawing.draw import draw
from rdm.sampling.request.sample_request import Request
from rdm.sampling.retrieval.look_up import LookUp
from rdm.sources import CropConfig, open_source

ROWS = int(os.environ.get("RDM_BENCHMARK_ROWS", "1000000"))
ROUNDS = int(os.environ.get("RDM_BENCHMARK_ROUNDS", "3"))
DIM, K, PICTURES, PHOTOGRAPHS, PIECE = 512, 4, 16, 64, 50_000
LISTS, PROBED, TRAINED = 1024, 8, 40_000
SETTINGS = SampleSettings(
    k=K,
    sampler="dpm++2m",
    spacing="karras",
    num_steps=20,
    guidance_scale=1,
    batch_size=PICTURES,
)
_MODEL = "assets://rdm-64"
# Prints the seconds of a first picture's parts, in their order.
_START = f"""
import json, sys, time
seconds, before = {{}}, 0.0
def part(name):
    global before
    now = time.process_time()
    seconds[name], before = now - before, now
part("interpreter")
import torch
torch.set_num_threads(1)
part("torch")
from diffusers.models.autoencoders import autoencoder_kl
from diffusers.models.unets import unet_2d_condition
part("diffusers")
from rdm.database import RetrievalDatabase
from rdm.generators.model_folder import open_model
from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.drawing.draw import draw
from rdm.sampling.request.sample_request import Request
from rdm.sampling.retrieval.look_up import LookUp
part("our modules")
model = open_model("{_MODEL}", torch.device("cpu"))
part("model")
database = RetrievalDatabase.open(sys.argv[1], device="cpu")
part("database")
settings = SampleSettings.model_validate_json(sys.argv[2])
asked = Request(texts=("an owl",), seeds="0", settings=settings)
known = LookUp(asked, model.info, {{"birds": database}}).rows(0, 1)
part("look-up, with the text tower")
draw(model, known, settings)
part("first batch")
print(json.dumps(seconds))
"""


def run() -> str:
    """Return the figures in words."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        root = small_database(Path(directory))
        model, birds = open_model(_MODEL, torch.device("cpu")), RetrievalDatabase.open(root)
        seconds = _sixteen(model, birds)
        return "; ".join(
            [
                f"{PICTURES} pictures {seconds:.2f} s",
                _look_ups(Path(directory), seconds),
                _attention(model, birds),
                _encoding(model, birds),
                _starting(root),
            ]
        )


def small_database(directory: Path) -> str:
    """Build a database of a few embedded photographs and return its folder."""
    source = open_source("samples://openimages-birds")
    (directory / "photographs").mkdir()
    for number, url in enumerate(source.listing().column("location").to_pylist()[:PHOTOGRAPHS]):
        (directory / "photographs" / f"{number}.jpg").write_bytes(source.read(url))
    config = BuildConfig(
        source=f"folder://{directory}/photographs",
        encoder="assets://encoder-lite",
        crop=CropConfig(frame_size=96, patch_size=64),
    )
    root = str(directory / "birds")
    run_build(DatabaseBuilder(root, config), ComputeConfig(dask="inline"))
    return root


def _asked(seeds: int) -> Request:
    return Request(texts=("an owl",), seeds=f"0-{seeds - 1}", settings=SETTINGS)


def _sixteen(model: Model, birds: RetrievalDatabase) -> float:
    """Return the processor seconds of drawing 16 pictures, after a warm-up."""
    known = LookUp(_asked(PICTURES), model.info, {"birds": birds}).rows(0, PICTURES)
    _, seconds, _ = paired_ratio(
        lambda: draw(model, known, SETTINGS), lambda: None, ROUNDS, time.process_time
    )
    return seconds


def _look_ups(directory: Path, drawing: float) -> str:
    """Return the share of drawing 16 pictures that a look-up takes."""
    vectors, rng = _random_vectors(directory / "vectors.npy"), np.random.default_rng(1)
    queries = rng.standard_normal((PICTURES, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index = faiss.index_factory(DIM, f"IVF{LISTS},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.train(np.asarray(vectors[:TRAINED], np.float32))
    for start in range(0, len(vectors), PIECE):
        index.add(np.asarray(vectors[start : start + PIECE], np.float32))
    faiss.ParameterSpace().set_index_parameters(index, f"nprobe={PROBED}")
    none, words = np.zeros(0, np.int64), []
    for count, name in ((1, "a text"), (PICTURES, "unconditional")):
        some = queries[:count]
        _, exact, approximate = paired_ratio(
            lambda some=some: exact_search(
                quantize(some), blocks_of([(0, vectors)]), K, excluded=none
            ),
            lambda some=some: index.search(some, K),
            ROUNDS,
            time.process_time,
        )
        words.append(
            f"look-up of {name} among {ROWS:,} rows {exact / drawing:.1%} of it exactly "
            f"({exact:.3f} s), {approximate / drawing:.2%} by index ({approximate:.4f} s)"
        )
    return "; ".join(words)


def _random_vectors(path: Path) -> np.ndarray:
    """Write unit vectors float16 [ROWS, 512], and return them memory-mapped."""
    rng = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (ROWS, DIM))
    for start in range(0, ROWS, PIECE):
        some = rng.standard_normal((min(PIECE, ROWS - start), DIM), np.float32)
        out[start : start + PIECE] = some / np.linalg.norm(some, axis=1, keepdims=True)
    out.flush()
    return np.load(path, mmap_mode="r")


def _attention(model: Model, birds: RetrievalDatabase) -> str:
    """Return what heat maps add to drawing 16 pictures."""
    known = LookUp(_asked(PICTURES), model.info, {"birds": birds}).rows(0, PICTURES)

    def with_maps() -> None:
        attention_maps(model, known, draw(model, known, SETTINGS))

    ratio, _, _ = paired_ratio(
        lambda: draw(model, known, SETTINGS), with_maps, ROUNDS, time.process_time
    )
    return f"with attention maps {ratio:.3f} times"


def _encoding(model: Model, birds: RetrievalDatabase) -> str:
    """Return the ratio of requests whose retrieved pictures are encoded to ours."""
    words, encoder = [], birds.encoder
    for count in (1, PICTURES):
        settings = SETTINGS.model_copy(update={"batch_size": count})
        request = _asked(count).model_copy(update={"settings": settings})

        def ours(request: Request = request, count: int = count) -> None:
            known = LookUp(request, model.info, {"birds": birds}).rows(0, count)
            draw(model, known, request.settings)

        def theirs(request: Request = request, count: int = count) -> None:
            known = LookUp(request, model.info, {"birds": birds}).rows(0, count)
            pictures = birds.pixels(known[0].query.neighbor_ids)
            encoder.encode_images(np.stack([encoder.preprocess(one) for one in pictures]))
            draw(model, known, request.settings)

        ratio, seconds, _ = paired_ratio(ours, theirs, ROUNDS, time.process_time)
        words.append(f"{count} pictures {ratio:.3f} times our {seconds:.2f} s")
    return f"encoding the {K} retrieved pictures on every call: {', '.join(words)}"


def _starting(root: str) -> str:
    settings = SETTINGS.model_copy(update={"batch_size": 1}).model_dump_json()
    command = [sys.executable, "-c", _START, root, settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    parts = json.loads(done.stdout.splitlines()[-1])
    words = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
    return f"a first picture from a cold start {sum(parts.values()):.2f} s: {words}"


if __name__ == "__main__":
    print(run())
