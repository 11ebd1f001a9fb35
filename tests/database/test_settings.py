from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import DatabaseBuilder
from rdm.database.building.jobs import run_build, update_builder, update_plan
from rdm.database.search.index_settings import IndexConfig
from rdm.database.settings import BuildConfig, differing_fixed, has_changed, recorded
from rdm.errors import DatabaseError, UsageError
from rdm.sources import CropConfig
from rdm.storage import Folder, Version, VersionStore

INLINE = ComputeConfig(dask="inline")


def version_of(config: dict[str, Any]) -> Version:
    texts = dict.fromkeys(("index_key", "index_param", "head_sha256"), "")
    measured = (
        "recall_at_20",
        "recall_ci95",
        "audit_queries",
        "built_num_vectors",
        "built_recall_at_20",
    )
    numbers = dict.fromkeys(("num_vectors", "dim", "num_bytes", "head_bytes", *measured), 0)
    empty: dict[str, Any] = {
        "encoder": {"name": "", "digest": "", "precision": "float32", "fingerprint": {}},
        "index": {**texts, **numbers, "decision": {"action": "built", "reason": ""}},
        **dict.fromkeys(("deleted_patches", "dropped_patches"), {}),
        **dict.fromkeys(("tombstones", "deleted_image_ids", "deleted_sha256", "parts"), []),
    }
    counts = dict.fromkeys(("num_images", "num_patches", "next_patch_id", "embedding_dim"), 0)
    facts = {
        "number": 1,
        "oldest_version": 1,
        "parent": None,
        "source": "",
        "source_fingerprint": "",
    }
    return Version.model_validate({**empty, **counts, **facts, "config": config})


def run_json(root: Path) -> dict[str, Any]:
    return json.loads((root / "run.json").read_text())


def test_source_is_recorded_with_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        recorded(BuildConfig(source="folder://photos"))["source"] == f"folder://{tmp_path}/photos"
    )


def test_leave_to_lose_many_photographs_is_not_recorded() -> None:
    config = BuildConfig(source="folder:///x", max_vanished_share=1, max_delisted_share=1)
    assert not {"max_vanished_share", "max_delisted_share"} & recorded(config).keys()
    assert not has_changed(config, version_of(recorded(BuildConfig(source="folder:///x"))))


def test_another_mirror_is_a_change_and_another_source_is_refused() -> None:
    parent = version_of(
        recorded(BuildConfig(source="openimages://validation?mirror=https://a.example"))
    )
    mirrored = BuildConfig(source="openimages://validation?mirror=https://b.example")
    assert has_changed(mirrored, parent)
    assert differing_fixed(mirrored, parent) == []
    assert differing_fixed(BuildConfig(source="openimages://test"), parent) == ["source"]


def test_build_with_another_index_setting_builds_the_index_anew(
    buildable_root: Path, build: Any
) -> None:
    result = build(
        buildable_root, buildable_root.parent / "photos", index=IndexConfig(audit_queries=3)
    )
    version = RetrievalDatabase.open(str(buildable_root)).version
    assert (result.unchanged, version.number, version.index.audit_queries) == (False, 2, 3)
    assert result.index_decision.reason == "its settings were changed"
    assert version.config == run_json(buildable_root)


def test_build_with_another_setting_keeps_the_index_and_records_it(
    buildable_root: Path, build: Any
) -> None:
    before = VersionStore(Folder(buildable_root)).require()
    build(buildable_root, buildable_root.parent / "photos", min_success_rate=0.5)
    after = VersionStore(Folder(buildable_root)).require()
    assert (after.number, after.config["min_success_rate"]) == (2, 0.5)
    assert after.parts == before.parts
    assert build(buildable_root, buildable_root.parent / "photos", min_success_rate=0.5).unchanged


def test_refused_build_leaves_the_recorded_settings(living_root: Path, build: Any) -> None:
    before = run_json(living_root)
    with pytest.raises(DatabaseError, match="another crop"):
        build(
            living_root,
            living_root.parent / "photos",
            crop=CropConfig(frame_size=40, patch_size=20),
        )
    assert run_json(living_root) == before


def test_update_takes_settings_and_keeps_them(living_root: Path) -> None:
    broken = [living_root.parent / "photos" / f"x{number:02d}.jpg" for number in range(11)]
    for path in broken:
        path.write_bytes(b"words")
    result = run_build(update_builder(str(living_root), overrides=["min_success_rate=0"]), INLINE)
    assert result.failed == 11
    assert VersionStore(Folder(living_root)).require().config["min_success_rate"] == 0
    assert not update_plan(update_builder(str(living_root))).changed


def test_update_refuses_fixed_and_unknown_settings(living_root: Path) -> None:
    with pytest.raises(DatabaseError, match="another images_per_shard"):
        update_plan(update_builder(str(living_root), overrides=["images_per_shard=7"]))
    with pytest.raises(UsageError, match="no setting 'success'"):
        update_builder(str(living_root), overrides=["success=7"])


def test_plan_of_a_build_refuses_what_the_build_does(living_root: Path, tiny_encoder: str) -> None:
    config = BuildConfig.model_validate(VersionStore(Folder(living_root)).require().config)
    for other in (
        {"crop": CropConfig(patch_size=50)},
        {"source": f"folder://{living_root.parent}"},
    ):
        with pytest.raises(DatabaseError, match="the database was built with another"):
            DatabaseBuilder(str(living_root), config.model_copy(update=other)).plan()
