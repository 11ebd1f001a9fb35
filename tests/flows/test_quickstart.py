"""The quickstart for real, among hostile settings and without a home: killed, started again, found
complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]


HOSTILE = {
    **dict.fromkeys(
        ("HOME", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR", "NUMBA_CACHE_DIR", "HF_HOME"),
        "/proc/none",
    ),
    **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "PREFECT_API_URL": "http://127.0.0.1:4/api",
    "PREFECT_PROFILE": "none",
    "CUDA_VISIBLE_DEVICES": "",
    "RANK": "3",
    "MASTER_ADDR": "10.9.9.9",
}
ENVIRONMENT = {**os.environ, **HOSTILE}


def _command(root: Path) -> list[str]:
    return [
        sys.executable, "-c", "from rdm.cli import main; "
                              "main()", "quickstart", "--root", str(root), "--json",
        "--set", "max_steps=20", "--set", "checkpoint_every=10",
    ]  # fmt: skip


def _kill_when(root: Path, finished: str) -> None:
    process = subprocess.Popen(
        _command(root), start_new_session=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT
    )
    try:
        while not (root / finished).exists():
            assert process.poll() is None, "the quickstart ended before it could be killed"
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_quickstart_is_finished_by_the_same_command(tmp_path: Path) -> None:
    root = tmp_path / "quick"
    _kill_when(root, "stages/embed.json")
    _kill_when(root, "run/stats.jsonl")
    done = subprocess.run(_command(root), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "Retrieval-augmented diffusion" in page
    assert 'src="http' not in page

    started = time.monotonic()
    again = subprocess.run(_command(root), capture_output=True, text=True, env=ENVIRONMENT)
    assert json.loads(again.stdout) == summary
    assert time.monotonic() - started < 60, "a complete quickstart is found complete, not run again"
