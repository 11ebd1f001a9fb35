from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rdm.homes import is_writable, own_home, writable_homes

NOWHERE = "/proc/nohome"  # can be made by nobody


def test_folder_that_could_be_made_is_writable_and_is_not_made(tmp_path: Path) -> None:
    assert is_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_and_a_file_are_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not is_writable(Path(NOWHERE))
    assert not is_writable(tmp_path / "file")
    assert not is_writable(tmp_path / "file" / "below")


def test_writable_home_changes_nothing(tmp_path: Path) -> None:
    given = {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TORCH_HOME": str(tmp_path / "torch"),
    }
    assert writable_homes(given, Path("/own")) == {}


@pytest.mark.parametrize("home", [NOWHERE, "relative", "~"])
def test_home_that_cannot_be_written_is_replaced(tmp_path: Path, home: str) -> None:
    assert writable_homes({"HOME": home}, tmp_path) == {"HOME": str(tmp_path)}


def test_caches_that_cannot_be_written_go_below_the_own_folder(tmp_path: Path) -> None:
    given = {"HOME": NOWHERE, "XDG_CACHE_HOME": f"{NOWHERE}/c", "NUMBA_CACHE_DIR": f"{NOWHERE}/n"}
    assert writable_homes(given, tmp_path) == {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": f"{tmp_path}/.cache",
        "NUMBA_CACHE_DIR": "",
    }


def test_cache_of_another_user_in_a_writable_home_is_replaced_alone(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("")  # a folder that root made is no more writable than a file
    assert writable_homes({"HOME": str(tmp_path)}, Path("/own")) == {
        "XDG_CACHE_HOME": "/own/.cache"
    }


def test_own_folder_is_this_users_alone(tmp_path: Path) -> None:
    first = own_home(tmp_path)
    assert (first.parent, stat.S_IMODE(first.stat().st_mode)) == (tmp_path, 0o700)
    assert own_home(tmp_path) == first
    first.chmod(0o777)  # as somebody else could have made it
    assert own_home(tmp_path) not in (first, tmp_path)


def test_a_command_without_a_home_gives_one_to_what_it_starts(tmp_path: Path) -> None:
    code = (
        "import os; from rdm.cli.main import run; run(['--version']); "
        "print(os.environ['HOME'], os.environ.get('TORCH_EXTENSIONS_DIR'))"
    )
    given = {
        **os.environ,
        "HOME": NOWHERE,
        "TORCH_EXTENSIONS_DIR": f"{NOWHERE}/t",
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/rdm-home-{os.getuid()} None"
