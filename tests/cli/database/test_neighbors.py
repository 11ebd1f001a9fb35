"""`rdm neighbors build`, `drop` and `contamination` on the command line: options, exit codes,
JSON."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.cli.main import run
from rdm.database import NeighborConfig
from rdm.database.neighbors.table import build_command
from rdm.sources import CropConfig, QuerySetConfig

Command = Callable[..., tuple[int, dict[str, Any], str]]


def test_contamination_is_an_exit_code_until_it_is_excluded(
    rdm: Command, photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    root, source = tmp_path / "db", f"folder://{photos}"
    sets = (
        f"encoder={tiny_encoder}",
        "crop.frame_size=40",
        "crop.patch_size=24",
        "images_per_shard=5",
    )
    options = [word for setting in sets for word in ("--set", setting)]
    assert (
        rdm("database", "build", "--root", root, "--source", source, "--dask", "inline", *options)[
            0
        ]
        == 0
    )
    build = (
        "neighbors",
        "build",
        "--root",
        root,
        "--queries",
        source,
        "--dask",
        "inline",
        "--set",
        "k_stored=4",
    )
    ask = ("neighbors", "contamination", "--root", root, "--threshold", 1)
    assert rdm(*build, "--name", "same")[0] == 0
    code, found, _ = rdm(*ask, "--name", "same")
    assert (code, found["num_photographs"], found["same_photographs"]) == (1, 12, 12)
    assert {pair["match"] for pair in found["list"][:12]} == {"bytes"}
    assert not any(pair["excluded"] for pair in found["list"])
    code, built, _ = rdm(*build, "--name", "others", "--exclude-self", "--exclude-above", "0.9999")
    assert code == 0
    assert built["excluded"] > 0
    code, found, _ = rdm(*ask, "--name", "others", "--gallery", tmp_path / "pairs.html")
    assert (code, found["same_photographs"], found["pairs_not_excluded"]) == (0, 12, 0)
    assert (tmp_path / "pairs.html").exists()


@pytest.mark.parametrize("crop", [CropConfig(), CropConfig(frame_size=40, patch_size=24)])
def test_command_that_builds_a_table_again_has_all_its_settings(
    rdm: Command, root: Path, crop: CropConfig
) -> None:
    queries = QuerySetConfig(source=f"folder://{root.parent}/photos", crop=crop, images_per_shard=4)
    fields = {"exclude_self": True, "exclude_above": 0.95, "shared_image_ids": False}
    config = NeighborConfig(queries=queries, k_stored=4, exact=False, **fields)
    code, plan, _ = rdm(*shlex.split(build_command(str(root), "q", config))[1:], "--dry-run")
    assert (code, NeighborConfig.model_validate(plan["config"])) == (0, config)


def test_plan_for_no_database_is_refused(rdm: Command, photos: Path, tmp_path: Path) -> None:
    asked = ("--root", tmp_path / "none", "--queries", f"folder://{photos}", "--name", "q")
    code, _, message = rdm("neighbors", "build", *asked, "--dry-run")
    assert (code, "not a retrieval database" in message) == (1, True)


def test_plan_for_no_word_is_refused(rdm: Command, root: Path) -> None:
    asked = ("--root", root, "--queries", f"folder://{root.parent}/photos", "--name", "a/b")
    code, _, message = rdm("neighbors", "build", *asked, "--dry-run")
    assert (code, "cannot name a query set" in message) == (1, True)


@pytest.mark.parametrize("value", ["0", "-0.5", "1.5"])
def test_exclusion_above_no_similarity_is_a_usage_error(value: str) -> None:
    asked = ["--root", "x", "--queries", "folder:///x", "--name", "q"]
    assert run(["neighbors", "build", *asked, f"--exclude-above={value}"]) == 2


def test_dropped_neighbors_are_in_no_later_version(rdm: Command, root: Path) -> None:
    asked = (
        "--queries",
        f"folder://{root.parent}/photos",
        "--name",
        "q",
        "--dask",
        "inline",
        "--set",
        "k_stored=4",
    )
    rdm("neighbors", "build", "--root", root, *asked)
    code, plan, _ = rdm("neighbors", "drop", "--root", root, "--name", "q", "--dry-run")
    assert (code, plan["queries"]) == (0, 12)
    assert rdm("database", "status", "--root", root)[1]["query_sets"] == ["q"]
    code, dropped, _ = rdm("neighbors", "drop", "--root", root, "--name", "q")
    assert (code, dropped["version"]) == (0, 3)
    assert rdm("database", "status", "--root", root)[1]["query_sets"] == []
