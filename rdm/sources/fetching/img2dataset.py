"""Run img2dataset over a list of URLs, as a process of its own that ends with this one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from rdm.errors import RdmError
from rdm.sources.http.client import FetchConfig

ROWS, JOB, LOG, OUTPUT = "rows.parquet", "job.json", "img2dataset.log", "out"
# `none` is short for noindex and nofollow.
OPT_OUTS = ["noai", "noimageai", "noindex", "noimageindex", "none"]
START_SECONDS = 300  # a loaded machine takes its time to import
_POLL_SECONDS = 5
_ROWS_PER_FLUSH = 100  # img2dataset's ledger grows by so many rows at once


def run_img2dataset(directory: Path, config: FetchConfig, num_rows: int) -> None:
    """Fetch the URLs of `directory/rows.parquet` (`row`, `url`) into `directory/out`, as one shard.

    Every download is written at once, so one that is cut off leaves what it had. A process that
    stops moving is ended.

    Raises:
        RdmError: img2dataset cannot run.
    """
    # The job goes through a file: URLs on a command line are seen by every user of the machine.
    (directory / JOB).write_text(
        json.dumps({"fetch": config.model_dump(), "img2dataset": _options(directory, config)})
    )

    environment = os.environ | {
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    module = "rdm.sources.fetching.img2dataset_process"
    command = [sys.executable, "-m", module, str(directory / JOB)]

    # A session of its own, so that the whole group can be ended; the open pipe on standard input
    # ends it when this process dies.
    with open(directory / LOG, "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = wait_while_moving(process, directory / OUTPUT, _stall_seconds(config, num_rows))
        finally:
            _end(process)

    if code:
        raise RdmError(
            f"img2dataset ended with code {code}: {_last_line(directory / LOG)}",
            where=directory / LOG,
            fix="check that it can be imported (`python -c 'import img2dataset'`), and run "
            "the same command again",
        )


def _options(directory: Path, config: FetchConfig) -> dict[str, object]:
    """Return img2dataset's arguments: plain files, no resizing, one attempt at a time."""
    return {
        "url_list": str(directory / ROWS),
        "input_format": "parquet",
        "output_folder": str(directory / OUTPUT),
        "output_format": "files",
        "save_additional_columns": ["row"],
        "number_sample_per_shard": 1_000_000,
        "thread_count": config.num_threads,
        "disable_all_reencoding": True,  # pictures are decoded within our own limits
        "compute_hash": None,
        "extract_exif": False,
        "retries": 0,  # the opener retries, see `http.client`
        "user_agent_token": config.user_agent,
        "disallowed_header_directives": OPT_OUTS,
    }


def _stall_seconds(config: FetchConfig, num_rows: int) -> float:
    """Return how long no file may appear: as many downloads in a row as may fail in each thread."""
    turns = -(-min(num_rows, _ROWS_PER_FLUSH) // config.num_threads)
    return START_SECONDS + turns * config.attempts * (
        config.max_seconds + config.max_backoff_seconds
    )


def wait_while_moving(process: subprocess.Popen[bytes], output: Path, stall_seconds: float) -> int:
    """Return the process's exit code; 0 also if it stopped moving: its files are still of use."""
    # Files and the ledger's size move while anything is fetched.
    seen, since = (0, 0), time.monotonic()
    while True:
        try:
            return process.wait(min(_POLL_SECONDS, stall_seconds))
        except subprocess.TimeoutExpired:
            now = _progress(output)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > stall_seconds:
                return 0


def _progress(output: Path) -> tuple[int, int]:
    """Return the number of files, and the size of the ledger."""
    files = sum(1 for _ in (output / "00000").iterdir()) if (output / "00000").is_dir() else 0
    ledger = output / "00000.parquet"
    return files, ledger.stat().st_size if ledger.exists() else 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process with those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _last_line(log: Path) -> str:
    """Return the last line of a log, without URLs, which may hold secrets."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return re.sub(r"\S*://\S*", "(a URL)", last)[:200]
