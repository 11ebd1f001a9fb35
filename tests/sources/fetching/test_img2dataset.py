from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdm.errors import RdmError
from rdm.sources.fetching.img2dataset import run_img2dataset, wait_while_moving
from rdm.sources.http.client import FetchConfig


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing for a long time."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_process_that_stopped_moving_is_given_up(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert wait_while_moving(sleeper, tmp_path / "out", stall_seconds=0.01) == 0
    assert sleeper.poll() is None


def test_exit_code_is_returned(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        assert wait_while_moving(process, tmp_path / "out", stall_seconds=60) == 3


@pytest.mark.slow
def test_img2dataset_that_cannot_run_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(
        RdmError, match="img2dataset ended with code 1: FileNotFoundError"
    ) as caught:
        run_img2dataset(tmp_path, FetchConfig(), 1)
    assert caught.value.where == str(tmp_path / "img2dataset.log")
