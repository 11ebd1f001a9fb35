"""Databases of earlier releases, which recorded neither digests nor boxes of what was removed, and relative paths."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdm.compute import ComputeConfig
from rdm.database.building.jobs import run_build, update_builder, update_plan
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.exchange.import_embeddings import ImportConfig, import_database
from rdm.database.reader import RetrievalDatabase
from rdm.database.search.index import index_place, publish_index
from rdm.database.search.search_parameters import write_parameters
from rdm.database.verify.verify import verify_database
from rdm.sources.photographs.decode import DECODING_REVISION
from rdm.storage import Folder, Version, VersionStore

INLINE = ComputeConfig(dask="inline")


def current(root: Path) -> Version:
    return VersionStore(Folder(str(root))).require()


def make_older(root: Path, source: str | None = None) -> None:
    """Take from the newest version what earlier releases did not write, and write its source as they did."""
    path = root / "versions" / f"{current(root).number:06d}.json"
    version = json.loads(path.read_text())
    del version["deleted_sha256"], version["deleted_patches"], version["decoding"]
    if source is not None:
        version["source"] = version["config"]["source"] = source
    path.write_text(json.dumps(version))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))


def update(root: Path, removal: Removal | None = None, **options: Any) -> dict[str, Any]:
    return run_build(update_builder(str(root), removal, **options), INLINE)


def boxes(root: Path, image_id: str) -> set[tuple[int, ...]]:
    """The boxes of a photograph's living patches."""
    version, found = current(root), set()
    for part in version.parts_of("patches"):
        for row in Folder(str(root)).read_table(part.path).to_pylist():
            if row["image_id"] == image_id and row["patch_id"] not in version.tombstones:
                found.add((row["x0"], row["y0"], row["x1"], row["y1"]))
    return found


def test_compaction_records_what_it_empties_and_copies_stay_out(living_root: Path, tmp_path: Path) -> None:
    update(living_root, Removal(image_ids=frozenset({"p03.jpg"})))
    make_older(living_root)
    compact_database(str(living_root))
    assert len(current(living_root).deleted_sha256) == 1
    shutil.copy(tmp_path / "photos" / "p03.jpg", tmp_path / "photos" / "copy.jpg")
    assert update(living_root)["causes"] == {"removed on request": 1}


@pytest.mark.parametrize("compacted", [False, True])
def test_single_patches_that_were_removed_are_not_cut_again(living_root: Path, tmp_path: Path, compacted: bool) -> None:
    update(living_root, Removal(patch_ids=frozenset({0})))
    left = boxes(living_root, "p00.jpg")
    make_older(living_root)
    if compacted:
        compact_database(str(living_root))
    os.utime(tmp_path / "photos" / "p00.jpg", (1, 1))
    assert update(living_root)["causes"] == {"success": 1}
    assert boxes(living_root, "p00.jpg") == left


def test_removal_leaves_a_relative_source_as_it_is(
    living_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older(living_root, "folder://photos")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    update(living_root, Removal(image_ids=frozenset({"p03.jpg"})), only_delete=True)
    version = current(living_root)
    assert version.source == version.config["source"] == "folder://photos"
    monkeypatch.chdir(tmp_path)
    assert update(living_root)["unchanged"]


def test_photographs_of_an_earlier_decoding_keep_their_vectors_and_updates_say_so(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    assert current(living_root).decoding == DECODING_REVISION
    assert "decoding" not in update_plan(update_builder(str(living_root)))
    part = current(living_root).parts_of("embeddings")[0]
    make_older(living_root)
    (tmp_path / "photos" / "new.jpg").write_bytes(encoded(77))
    plan = update_plan(update_builder(str(living_root)))
    assert plan["new"] == 1
    assert f"--config {living_root}/run.json" in plan["decoding"]
    update(living_root)
    assert current(living_root).decoding == 1
    assert current(living_root).parts_of("embeddings")[0] == part
    assert "decoding revision 1" in update_plan(update_builder(str(living_root)))["decoding"]


@pytest.fixture
def many_lists(tmp_path: Path, tiny_encoder: str) -> Path:
    """A database of an earlier release over 3,000 vectors: its index file looks into one list of many."""
    noise = np.random.default_rng(0).standard_normal((3000, 16))
    for name in ("img_emb", "metadata"):
        (tmp_path / "clip" / name).mkdir(parents=True)
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    np.save(tmp_path / "clip/img_emb/img_emb_0.npy", unit.astype(np.float16))
    table = pa.table({"image_path": [f"{number}.jpg" for number in range(3000)]})
    pq.write_table(table, tmp_path / "clip/metadata/metadata_0.parquet")
    source = {"format": "clip-retrieval", "folder": str(tmp_path / "clip"), "encoder": tiny_encoder}
    import_database(str(tmp_path / "db"), ImportConfig.model_validate(source))
    store = VersionStore(Folder(tmp_path / "db"))
    version = store.require()
    write_parameters(tmp_path / "db" / version.parts_of("index")[0].path, "nprobe=1")
    infos = {name: version.index[name] for name in version.index if name not in ("head_sha256", "index_param_in_file")}
    store.folder.write_json(version.parts_of("infos")[0].path, infos)
    publish_index(store.folder, index_place(version))
    parts = [store.describe_part(part.kind, part.path, part.num_rows) for part in version.parts]
    store.commit(version.model_copy(update={"parts": parts, "index": infos}))
    return tmp_path / "db"


def bare_recall(root: Path) -> float:
    """Return recall@20 of the published index, opened by faiss alone, on 200 rows."""
    database = RetrievalDatabase.open(str(root))
    queries = database.embeddings(database.living_ids()[:200])
    truth, _ = database.search_vectors(queries, 20, exact=True)
    found = faiss.read_index(str(root / "image.index")).search(queries.astype(np.float32), 20)[1]
    return float(np.mean([len(np.intersect1d(*pair)) / 20 for pair in zip(truth, found, strict=True)]))


def test_verify_tells_that_an_index_file_lacks_its_search_parameters(many_lists: Path) -> None:
    assert current(many_lists).index["index_param"] == "nprobe=64"
    (finding,) = verify_database(str(many_lists))
    assert "lacks its search parameters (nprobe=64)" in finding
    assert "`rdm database update` writes them" in finding


def test_update_without_changes_writes_the_search_parameters_and_the_next_does_nothing(many_lists: Path) -> None:
    before = bare_recall(many_lists)
    assert not update(many_lists)["unchanged"]
    after, version = bare_recall(many_lists), current(many_lists)
    assert (version.number, version.num_live_patches) == (2, 3000)
    assert before < 0.5
    assert after == pytest.approx(version.index["recall_at_20"], abs=0.02)
    assert verify_database(str(many_lists)) == []
    assert update(many_lists)["unchanged"]
