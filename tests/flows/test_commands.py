from __future__ import annotations

from pathlib import Path

import pytest

from flows.commands import LOCK
from rdm.cli.main import run
from rdm.storage.locks import lock_file


def told(capsys: pytest.CaptureFixture[str], root: Path) -> tuple[int, list[str]]:
    """Return exit code and lines of an attempt at a quickstart."""
    code = run(["quickstart", "--root", str(root)])
    return code, capsys.readouterr().err.strip().splitlines()


def test_quickstart_where_nothing_can_be_written_is_refused_in_three_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = told(capsys, Path("/proc/none/quick"))
    assert code == 1
    assert lines[0].startswith("error: the folder cannot be made")
    assert lines[1:] == [
        "  where: /proc/none/quick",
        "  fix:   give --root a folder that you may write",
    ]


def test_two_quickstarts_in_one_folder_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with lock_file(tmp_path / LOCK, "holds it"):
        code, lines = told(capsys, tmp_path)
    assert (code, "runs a quickstart in this folder" in lines[0]) == (1, True)
    assert not (tmp_path / ".prefect").exists()


def test_dry_run_of_a_quickstart_needs_no_prefect(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.toml").write_text("no TOML [[[")
    assert run(["quickstart", "--root", str(tmp_path / "quick"), "--dry-run", "--json"]) == 0
    assert "build, train, sample, measure, report" in capsys.readouterr().out
    assert not (tmp_path / "quick").exists()
