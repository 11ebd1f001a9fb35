from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_model import write_random_model

from rdm.cli.main import run
from rdm.database import RetrievalDatabase

QUICK = ("--set", "num_steps=2", "--set", "k=2", "--set", "guidance_scale=1")


def test_pictures_without_classes_are_measured_from_the_command_line(
    rdm: Callable[..., tuple[int, dict[str, Any], str]],
    root: Path,
    photos: Path,
    tmp_path: Path,
    tiny_encoder: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_random_model(tmp_path / "model", RetrievalDatabase.open(str(root)))
    out = tmp_path / "out"
    ask = [
        "evaluate-recognition",
        "--model",
        model,
        "--pictures",
        f"folder://{photos}",
        "--queries",
        3,
    ]
    ask += ["--encoder", tiny_encoder, "--out", out, *QUICK]
    code, found, _ = rdm(*ask)
    assert code == 0
    assert found["identification"]["num_contexts"] == 3
    assert found["device"] == "cpu"
    assert found == json.loads((out / "recognition.json").read_text())
    assert (out / "grid.png").exists()

    # The same command again shows it as tables.
    assert run([str(word) for word in ask]) == 0
    assert "identification AUC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("members", "classes", "told"),
    [
        ({"a.jpg": b"", "a.cls": b"one"}, '["x", "y"]', "a label is no number of a class"),
        ({"a.jpg": b"", "a.cls": b"0"}, '["x"]', "labels must be 0, 1, 2"),
        ({"a.jpg": b"", "a.cls": b"0"}, "none", "the classes are no JSON"),
    ],
)
def test_what_cannot_be_read_is_told_in_three_lines(
    members: dict[str, bytes],
    classes: str,
    told: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_random_model(tmp_path / "model", RetrievalDatabase.open(str(root)))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "classes.json").write_text(classes)
    ask = ["evaluate-recognition", "--model", model, "--pictures", f"webdataset://{tmp_path}/a.tar"]
    ask += ["--classes", tmp_path / "classes.json", "--out", tmp_path / "out"]
    capsys.readouterr()
    assert run([str(word) for word in ask]) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("20")]
    assert told in lines[0]
    assert len(lines) == 3
