"""`rdm database export` and `import` on the command line: plans, JSON, exit codes, searches of what
was imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., tuple[int, dict[str, Any], str]]


def test_database_leaves_by_export_and_comes_back_by_import(
    rdm_database: Command, photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    root, out, again = tmp_path / "db", tmp_path / "out", tmp_path / "again"
    sets = (
        f"encoder={tiny_encoder}",
        "crop.frame_size=40",
        "crop.patch_size=24",
        "images_per_shard=5",
    )
    options = [word for setting in sets for word in ("--set", setting)]
    rdm_database(
        "build", "--root", root, "--source", f"folder://{photos}", "--dask", "inline", *options
    )
    export = ("export", "--root", root, "--to", "npz", "--out", out)
    assert rdm_database(*export, "--dry-run")[1]["parts"] == 1
    assert not out.exists()
    assert rdm_database(*export)[1]["num_patches"] > 12
    take = ("import", out, "--from", "rdm-npz", "--root", again, "--encoder", tiny_encoder)
    assert rdm_database(*take, "--dry-run")[1]["parts"] == 1
    assert not again.exists()
    code, made, _ = rdm_database(*take, "--photographs", f"folder://{photos}")
    assert (code, made["photographs"], made["unchanged"]) == (0, 12, False)
    asked = ("search", "--text", "an owl", "-k", 5)
    assert (
        rdm_database(*asked, "--root", again)[1]["results"]
        == rdm_database(*asked, "--root", root)[1]["results"]
    )
    code, _, message = rdm_database(*asked, "--root", again, "--gallery", tmp_path / "page.html")
    assert code == 1
    assert "only embeddings were imported" in message
    assert rdm_database("status", "--root", again)[1]["has_pixels"] is False


def test_export_of_an_older_version_goes_on_after_an_update(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    export = ("export", "--root", root, "--to", "npz", "--out", tmp_path / "out")
    assert rdm_database(*export)[1]["version"] == 1
    rdm_database(
        "update", "--root", root, "--delete-where", "image_id == 'p01.jpg'", "--dask", "inline"
    )
    code, _, message = rdm_database(*export)
    assert (code, "--version 1 goes on with an unfinished one" in message) == (1, True)
    code, told, _ = rdm_database(*export, "--version", 1)
    assert (code, told["version"], told["unchanged"]) == (0, 1, True)


@pytest.mark.parametrize(
    "arguments", [("export", "--to", "zip", "--out", "x"), ("import", "x", "--from", "zip")]
)
def test_unknown_layout_is_a_usage_error(
    rdm_database: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    encoder = ("--encoder", "x") if arguments[0] == "import" else ()
    assert rdm_database(*arguments, "--root", tmp_path, *encoder)[0] == 2
