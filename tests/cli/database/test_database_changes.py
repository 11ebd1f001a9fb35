"""`rdm database update` and `compact` on the command line: plans, JSON, exit codes, messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.cli.main import run

Command = Callable[..., tuple[int, dict[str, Any], str]]


def test_dry_run_tells_how_many_images_and_patches_would_go(
    rdm_database: Command, root: Path
) -> None:
    before = (root / "manifest.json").read_bytes()
    condition = "image_id in ['p01.jpg', 'p02.jpg']"
    code, plan, _ = rdm_database("update", "--root", root, "--delete-where", condition, "--dry-run")
    assert (code, plan["gone"], plan["changed"]) == (0, 2, True)
    assert plan["gone_patches"] >= 4
    assert (root / "manifest.json").read_bytes() == before


def test_images_that_fulfill_a_condition_go(rdm_database: Command, root: Path) -> None:
    condition = "image_id in ['p01.jpg', 'p02.jpg']"
    code, result, _ = rdm_database(
        "update", "--root", root, "--delete-where", condition, "--dask", "inline"
    )
    assert (code, result["photographs"], result["version"]) == (0, 10, 2)


def test_listed_patches_go(rdm_database: Command, root: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0\n\n3\n")
    before = rdm_database("status", "--root", root)[1]["patches"]
    listed = ("--delete-patches", tmp_path / "list.txt")
    code, result, _ = rdm_database("update", "--root", root, *listed, "--dask", "inline")
    assert (code, result["gone_patches"], result["patches"]) == (0, 2, before - 2)


def test_line_that_is_no_patch_id_is_named(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("0\np01.jpg\n")
    code, _, message = rdm_database(
        "update", "--root", root, "--delete-patches", tmp_path / "list.txt"
    )
    assert code == 2
    assert "'p01.jpg' is not a patch id" in message


def test_unknown_column_is_a_usage_error_that_lists_the_columns(
    rdm_database: Command, root: Path
) -> None:
    code, _, message = rdm_database("update", "--root", root, "--delete-where", "licence == 'x'")
    assert code == 2
    assert "there is no column 'licence'" in message
    assert "license" in message


def test_missing_list_is_a_usage_error(rdm_database: Command, root: Path, tmp_path: Path) -> None:
    code, _, message = rdm_database(
        "update", "--root", root, "--delete-patches", tmp_path / "none.txt"
    )
    assert code == 2
    assert "the list of patch ids cannot be read: No such file or directory" in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"p01.jpg\0\np02.jpg\n", "line 1 holds a NUL byte"),
        (b"p01.jpg\n\xff\n", "line 2 is not UTF-8"),
    ],
)
def test_damaged_list_of_ids_is_a_usage_error_that_names_its_line(
    rdm_database: Command, root: Path, tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    code, _, found = rdm_database(
        "update", "--root", root, "--delete-images", tmp_path / "list.txt"
    )
    assert code == 2
    assert f"the list of image ids cannot be read: {message}" in found


def test_every_unknown_id_is_named_at_once(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "images.txt").write_text(
        "".join(f"x{number}.jpg\n" for number in range(7)) + "p01.jpg\n"
    )
    (tmp_path / "patches.txt").write_text("0\n9000\n")
    listed = (
        "--delete-images",
        tmp_path / "images.txt",
        "--delete-patches",
        tmp_path / "patches.txt",
    )
    code, _, message = rdm_database("update", "--root", root, *listed)
    named = ", ".join(f"image x{number}.jpg" for number in range(7))
    assert (code, f"the database has no {named}, patch 9000 where" in message) == (1, True)


def test_list_may_begin_with_a_byte_order_mark(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("p01.jpg\n", encoding="utf-8-sig")
    listed = ("--delete-images", tmp_path / "list.txt")
    code, plan, _ = rdm_database("update", "--root", root, *listed, "--dry-run", "--trial", 0)
    assert (code, plan["gone"]) == (0, 1)


def test_compaction_plan_writes_nothing(rdm_database: Command, root: Path) -> None:
    rdm_database(
        "update", "--root", root, "--delete-where", "image_id == 'p01.jpg'", "--dask", "inline"
    )
    before = (root / "manifest.json").read_bytes()
    code, plan, _ = rdm_database("compact", "--root", root, "--dry-run")
    assert (code, plan["photographs"], plan["shards"], plan["dropped_versions"]) == (
        0,
        1,
        1,
        [1, 2],
    )
    assert (root / "manifest.json").read_bytes() == before


def test_compaction_leaves_a_whole_database(rdm_database: Command, root: Path) -> None:
    rdm_database(
        "update", "--root", root, "--delete-where", "image_id == 'p01.jpg'", "--dask", "inline"
    )
    code, result, _ = rdm_database("compact", "--root", root)
    assert (code, result["version"]) == (0, 3)
    assert rdm_database("verify", "--root", root)[1] == {
        "root": str(root),
        "ok": True,
        "findings": [],
    }


def test_deleted_patch_cannot_be_inspected(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    rdm_database(
        "update", "--root", root, "--delete-where", "image_id == 'p00.jpg'", "--dask", "inline"
    )
    assert (
        run(
            [
                "database",
                "inspect",
                "--root",
                str(root),
                "--patch",
                "0",
                "--out",
                str(tmp_path / "x.html"),
            ]
        )
        == 1
    )
    assert not (tmp_path / "x.html").exists()


def test_card_of_a_database_with_removed_photographs_says_that_weights_are_not_unlearned(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    rdm_database(
        "update", "--root", root, "--delete-where", "image_id == 'p00.jpg'", "--dask", "inline"
    )
    rdm_database("compact", "--root", root)
    assert run(["database", "card", "--root", str(root), "--out", str(tmp_path / "card.md")]) == 0
    assert "Trained weights are not unlearned" in (tmp_path / "card.md").read_text()


def test_settings_that_are_not_fixed_can_be_given(rdm_database: Command, root: Path) -> None:
    given = ("--set", "min_success_rate=0.5", "--dask", "inline")
    code, result, _ = rdm_database("update", "--root", root, *given)
    assert (code, result["changed"], result["version"]) == (0, True, 2)
    code, _, message = rdm_database("update", "--root", root, "--set", "crop.patch_size=20")
    assert code == 1
    assert "another crop" in message


def test_plan_of_a_build_is_refused_as_the_build_is(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    code, _, message = rdm_database(
        "build", "--root", root, "--source", f"folder://{tmp_path}", "--dry-run"
    )
    assert code == 1
    assert "the database was built with another crop" in message
