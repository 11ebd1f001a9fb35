"""Databases of earlier releases, which recorded neither digests nor boxes of what was removed, and relative paths."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig
from rdm.database.changes import Removal
from rdm.database.compact import compact_database
from rdm.database.jobs import run_build, update_builder, update_plan
from rdm.sources.decode import DECODING_REVISION
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
