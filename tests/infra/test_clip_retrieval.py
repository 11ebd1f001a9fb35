"""clip-retrieval, installed from its own lock, serves a database's directory as it is and finds
what `rdm` finds.

The model that it loads is the database's own encoder: a registered architecture with random weights
in a local file, because no trained CLIP can be had here. So texts are embedded by both sides, and
queries by vector are equal in bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.exchange.import_embeddings import ImportConfig, import_database
from rdm.sources import CropConfig

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
SERVE = Path(__file__).parents[2] / "infra" / "clip-retrieval" / "serve.py"
ARCHITECTURE = "ViT-S-32-alt"
INLINE = ComputeConfig(dask="inline")


@pytest.fixture(scope="session")
def clip_python(locked_python: Callable[[str], Path]) -> Path:
    """The interpreter of clip-retrieval's environment."""
    return locked_python("clip-retrieval")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an encoder of 256 dimensions whose weights are random."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(open_clip.create_model(ARCHITECTURE).state_dict(), path)
    return f"open_clip:{ARCHITECTURE}/{path}"


@pytest.fixture(scope="session")
def served(
    tmp_path_factory: pytest.TempPathFactory, encoder: str, encoded: Callable[..., bytes]
) -> Path:
    """A database of 60 photographs, two of which were deleted, and ten added by an update."""
    base = tmp_path_factory.mktemp("served")
    (base / "photos").mkdir()
    for number in range(50):
        (base / "photos" / f"p{number:02d}.jpg").write_bytes(encoded(number))
    config = BuildConfig(
        source=f"folder://{base}/photos",
        encoder=encoder,
        images_per_shard=20,
        crop=CropConfig(frame_size=40, patch_size=24),
    )
    run_build(DatabaseBuilder(str(base / "db"), config), INLINE)
    for number in range(50, 60):
        (base / "photos" / f"p{number:02d}.jpg").write_bytes(encoded(number))
    run_build(update_builder(str(base / "db"), Removal(frozenset(["p07.jpg", "p31.jpg"]))), INLINE)
    return base / "db"


@pytest.fixture(scope="session")
def many_lists(tmp_path_factory: pytest.TempPathFactory, encoder: str) -> Path:
    """A database of 3,000 random vectors: their neighbors lie in many lists of the index."""
    base, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for name in ("img_emb", "metadata"):
        (base / "clip" / name).mkdir(parents=True)
    noise = rng.standard_normal((3000, 256))
    unit = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float16)
    np.save(base / "clip/img_emb/img_emb_0.npy", unit)
    table = pa.table({"image_path": [f"{number}.jpg" for number in range(3000)]})
    pq.write_table(table, base / "clip/metadata/metadata_0.parquet")
    source = {"format": "clip-retrieval", "folder": str(base / "clip"), "encoder": encoder}
    import_database(str(base / "db"), ImportConfig.model_validate(source))
    return base / "db"


@contextlib.contextmanager
def back(python: Path, root: Path, encoder: str, scratch: Path) -> Iterator[str]:
    """Run `clip-retrieval back` over a directory; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (scratch / "indices.json").write_text(json.dumps({"db": str(root)}))
    options = {
        "indices_paths": scratch / "indices.json",
        "port": port,
        "clip_model": encoder,
        "columns_to_return": '["patch_id","image_id","image_path","url"]',
        **dict.fromkeys(("use_jit", "enable_mclip_option", "provide_aesthetic_embeddings"), False),
        "enable_faiss_memory_mapping": True,
    }
    command = [python, SERVE, "back", *(f"--{name}={value}" for name, value in options.items())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with open(scratch / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=scratch)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process, scratch / "log.txt")
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(address),
        ):
            return
        time.sleep(0.5)
    raise AssertionError(f"no answer: {log.read_text()[-3000:]}")


ASK = """
import json, sys
from clip_retrieval.clip_client import ClipClient
address, k, queries = sys.argv[1], int(sys.argv[2]), json.load(sys.stdin)
client = ClipClient(url=address + "/knn-service", indice_name="db", num_images=k, deduplicate=False,
                    use_safety_model=False, use_violence_detector=False, aesthetic_weight=0)
print(json.dumps([client.query(**query) for query in queries]))
"""


def ask(
    python: Path, address: str, k: int, queries: list[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Query through clip-retrieval's own client."""
    done = subprocess.run(
        [python, "-c", ASK, address, str(k)],
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("compacted", [False, True])
def test_back_and_client_return_the_neighbors_of_a_search(
    clip_python: Path, served: Path, encoder: str, tmp_path: Path, compacted: bool
) -> None:
    root = tmp_path / "db"
    shutil.copytree(served, root)
    if compacted:
        compact_database(str(root))
    database = RetrievalDatabase.open(str(root))
    queries = (
        np.random.default_rng(3)
        .standard_normal((20, database.version.embedding_dim))
        .astype(np.float32)
    )
    queries[:10] = database.embeddings(database.living_ids()[::15][:10])
    unit = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float16)
    with back(clip_python, root, encoder, tmp_path) as address:
        found = ask(
            clip_python,
            address,
            20,
            [{"embedding_input": row} for row in unit.astype(float).tolist()],
        )
    ids, similarities = database.search_vectors(unit, 20)
    for rows, expected, values in zip(found, ids, similarities, strict=True):
        by_rank = sorted(
            rows, key=lambda row: (-np.float32(round(row["similarity"], 5)), row["id"])
        )
        order = np.lexsort((expected, -np.round(values, 5)))
        assert [row["id"] for row in by_rank] == expected[order].tolist()
        np.testing.assert_allclose([row["similarity"] for row in by_rank], values[order], atol=2e-5)
        records = {record.patch_id: record for record in database.records(expected)}
        for row in rows:
            assert row["patch_id"] == row["id"]
            assert row["image_id"] == records[row["id"]].image_id


def test_back_finds_in_an_index_of_many_lists_what_the_index_was_audited_for(
    clip_python: Path, many_lists: Path, encoder: str, tmp_path: Path
) -> None:
    database = RetrievalDatabase.open(str(many_lists))
    index = faiss.read_index(str(many_lists / "image.index"))
    assert faiss.extract_index_ivf(index).nlist >= 64
    assert faiss.extract_index_ivf(index).nprobe >= 16
    unit = database.embeddings(np.arange(0, 3000, 30))
    with back(clip_python, many_lists, encoder, tmp_path) as address:
        found = ask(
            clip_python,
            address,
            20,
            [{"embedding_input": row} for row in unit.astype(float).tolist()],
        )
    truth, _ = database.search_vectors(unit, 20, exact=True)
    ids = [[row["id"] for row in rows] for rows in found]
    recalls = [len(np.intersect1d(*pair)) / 20 for pair in zip(truth, ids, strict=True)]
    half = 1.96 * np.std(recalls, ddof=1) / np.sqrt(len(recalls))
    audited = database.version.index
    assert np.mean(recalls) == pytest.approx(audited.recall_at_20, abs=half + audited.recall_ci95)


def test_texts_are_embedded_by_the_same_model_and_find_the_same(
    clip_python: Path, served: Path, encoder: str, tmp_path: Path
) -> None:
    texts = ["an owl at night", "a duck on the water", "nothing at all"]
    database = RetrievalDatabase.open(str(served))
    with back(clip_python, served, encoder, tmp_path) as address:
        found = ask(clip_python, address, 10, [{"text": text} for text in texts])
    raw = database.encoder.encode_texts(texts)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    _, best = database.search_vectors(unit, 10)
    for rows, query, expected in zip(found, unit, best, strict=True):
        ids = np.array([row["id"] for row in rows])
        own = database.embeddings(ids).astype(np.float32) @ query
        np.testing.assert_allclose([row["similarity"] for row in rows], own, atol=1e-3)
        np.testing.assert_allclose([row["similarity"] for row in rows], expected, atol=1e-3)
