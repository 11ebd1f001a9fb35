"""A server in a process of its own, and what a client asks it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.sources import CropConfig

# The tiny encoder's network is registered before the command runs.
_START = """
import json, sys, open_clip
open_clip.add_model_config(sys.argv[1])
from rdm.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


def build_database(
    root: Path, encoded: Callable[..., bytes], encoder: str, first: int = 0
) -> RetrievalDatabase:
    """Build a database of eight photographs below a folder."""
    (root / "photos").mkdir(parents=True)
    for number in range(first, first + 8):
        (root / "photos" / f"{number}.jpg").write_bytes(encoded(number))
    config = BuildConfig(
        source=f"folder://{root}/photos",
        encoder=encoder,
        crop=CropConfig(frame_size=40, patch_size=32),
    )
    run_build(DatabaseBuilder(str(root / "db"), config), ComputeConfig(dask="inline"))
    return RetrievalDatabase.open(str(root / "db"))


class Running:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address
        self.client = httpx.Client(base_url=address, timeout=60)

    def ready(self) -> Running:
        """Wait until it can draw."""
        end = time.monotonic() + 90
        while self.client.get("readyz").status_code != 200:
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.05)
        return self

    def submit(self, **request: Any) -> dict[str, Any]:
        """Ask for pictures and return the job."""
        asked = {"texts": ["an owl"], "settings": {"num_steps": 2}, **request}
        answer = self.client.post("v1/jobs", json=asked)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def ended(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """Wait for a job's end and return it."""
        end = time.monotonic() + seconds
        while True:
            job = self.client.get(f"v1/jobs/{job_id}", params={"wait": 10}).json()
            if job["state"] in ("done", "failed", "cancelled"):
                return job
            assert time.monotonic() < end, job

    def events(self, job_id: str, last: str | None = None) -> list[tuple[str, str, Any]]:
        """Return (id, name, data) of every event of a job, to its end."""
        headers = {} if last is None else {"Last-Event-ID": last}
        found: list[tuple[str, str, Any]] = []
        with self.client.stream("GET", f"v1/jobs/{job_id}/events", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if not line and "data" in fields:
                    found.append((fields["id"], fields["event"], json.loads(fields["data"])))
                    fields = {}
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
        return found

    def drawer_pids(self) -> list[int]:
        """Return the drawers' processes."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = [int(pid) for pid in path.read_text().split()]
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return [pid for pid, command in commands.items() if b"spawn_main" in command]

    def stop(self) -> int:
        """End the server as a service manager does and return its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)


@contextmanager
def served(
    folder: Path,
    encoder_config: Path,
    databases: dict[str, RetrievalDatabase],
    model: Path | None,
    *options: str,
) -> Iterator[Running]:
    """Run `rdm serve` on a free port, with its data below a folder."""
    arguments = ["serve", "--port", "0", "--device", "cpu", "--data", str(folder / "data")]
    arguments += ["--set", "max_wait=3600"]  # machines that run tests may be slow
    for name, database in databases.items():
        arguments += ["--database", f"{name}={database.folder.url}"]
    if model is not None:
        arguments += ["--model", f"tiny={model}"]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(encoder_config), *arguments, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving on "), (folder / "log").read_text()
    running = Running(process, line.split()[2])
    try:
        yield running
    finally:
        running.client.close()
        if process.poll() is None:
            process.kill()
        process.wait(timeout=20)
        process.stdout.close()
