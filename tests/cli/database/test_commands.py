"""`rdm database build`, `search`, `inspect` and `card` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.cli.main import run
from rdm.database import reader as facade

Command = Callable[..., tuple[int, dict[str, Any], str]]


def test_search_asks_the_index_alone(
    rdm_database: Command, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(facade, "exact_search")
    code, found, _ = rdm_database("search", "--root", root, "--text", "an owl", "-k", 3)
    assert (code, len(found["results"])) == (0, 3)


def test_exact_search_compares_with_every_vector(
    rdm_database: Command, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(facade, "open_index")
    code, found, _ = rdm_database("search", "--root", root, "--text", "an owl", "-k", 3, "--exact")
    assert (code, len(found["results"])) == (0, 3)


def test_source_given_as_a_flag_wins_over_the_file(
    rdm_database: Command, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"source": "folder:///elsewhere", "batch_size": 7})
    )
    source = f"folder://{photos}"
    given = ("--root", tmp_path / "db", "--source", source, "--config", tmp_path / "config.json")
    code, plan, _ = rdm_database("build", *given, "--dry-run", "--trial", 0)
    assert (code, plan["config"]["source"], plan["config"]["batch_size"]) == (0, source, 7)


def test_inspect_tells_whose_the_patch_is(
    rdm_database: Command, root: Path, tmp_path: Path
) -> None:
    code, found, _ = rdm_database(
        "inspect", "--root", root, "--patch", 0, "--out", tmp_path / "patch.html"
    )
    assert (code, found["page"], found["image_id"]) == (0, str(tmp_path / "patch.html"), "p00.jpg")


def test_card_is_a_field_of_the_json(
    rdm_database: Command, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["database", "card", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert rdm_database("card", "--root", root)[1]["card"] == text
