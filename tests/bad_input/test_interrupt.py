"""Ctrl-C: says so, loses nothing, and the same command finishes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_build_is_finished_by_the_same_command(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    photos, root = tmp_path / "photos", tmp_path / "db"
    photos.mkdir()
    for number in range(60):
        (photos / f"{number:02d}.jpg").write_bytes(encoded(number))
    command = [
        sys.executable,
        "-c",
        "from rdm.cli import main; main()",
        "database",
        "build",
        "--root",
        str(root),
        # fmt: skip
        "--source",
        f"folder://{photos}",
        "--dask",
        "inline",
        "--set",
        "images_per_shard=10",
    ]
    # What a shell starts in its background ignores SIGINT, and so would what the tests start.
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hearing)
    while not (root / "_markers" / "ingest" / "00000.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command again to resume" in message
    assert not (root / "manifest.json").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (root / "manifest.json").exists()
