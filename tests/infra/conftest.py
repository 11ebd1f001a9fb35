"""Tools in environments of their own, installed from their locks at the first run and then kept
under build/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def locked_python() -> Callable[[str], Path]:
    """Return `locked_python(name)`: the interpreter of the environment that
    infra/NAME/requirements.lock describes."""

    def install(name: str) -> Path:
        venv, lock = PROJECT / "build" / name, PROJECT / "infra" / name / "requirements.lock"
        installed = venv / "requirements.lock"
        if not installed.exists() or installed.read_bytes() != lock.read_bytes():
            venv.parent.mkdir(exist_ok=True)
            tools = f"{PROJECT / '.venv.tools/bin'}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["sh", PROJECT / "infra" / "install_locked.sh", venv, lock],
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"PYTHON": sys.executable, "PATH": tools},
            )
            if done.returncode and re.search(
                r"failed to fetch|dns error|connection|timed out", done.stderr.lower()
            ):
                pytest.skip(f"the package registry cannot be reached: {done.stderr.strip()[-300:]}")
            assert done.returncode == 0, done.stderr[-3000:]
            installed.write_bytes(lock.read_bytes())
        return venv / "bin" / "python"

    return install
