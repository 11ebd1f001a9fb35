"""Many clients for half a minute, while drawers are killed and photographs removed: nothing is lost
and nothing happens twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Running, build_database, served

from rdm.compute import ComputeConfig
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SECONDS, CLIENTS = 30.0, 16
TERMINAL = ("job.done", "job.failed", "job.cancelled")


class Load:
    """What clients saw.

    Attributes:
        jobs: ids of accepted jobs, with the number of their pictures.
        refused: by status.
        slow: seconds of the slowest answers that draw nothing.
    """

    def __init__(self, server: Running) -> None:
        self.server = server
        self.until = time.monotonic() + SECONDS
        self.jobs: dict[str, int] = {}
        self.refused: Counter[int] = Counter()
        self.slow: list[float] = []

    async def client(self, number: int) -> None:
        """Ask, cancel, read and come back, at random."""
        rng = random.Random(number)
        headers = {"RDM-Client": f"client{number}"}
        async with httpx.AsyncClient(
            base_url=self.server.address, headers=headers, timeout=120
        ) as client:
            while time.monotonic() < self.until:
                await self._job(client, rng)
                started = time.monotonic()
                answer = await client.get("v1/databases")
                self.slow.append(time.monotonic() - started)
                assert answer.status_code == 200

    async def _job(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        count = rng.randint(1, 4)
        asked: dict[str, Any] = {
            "texts": [f"picture {rng.randint(0, 99)}"],
            "seeds": f"0-{count - 1}",
            "settings": {"num_steps": rng.randint(2, 12), "k": 2},
            "supersede": rng.random() < 0.3,
        }
        answer = await client.post("v1/jobs", json=asked)
        if answer.status_code != 202:
            assert answer.status_code in (429, 503), answer.text
            assert int(answer.headers["retry-after"]) >= 1
            self.refused[answer.status_code] += 1
            await asyncio.sleep(0.2)
            return
        job = answer.json()["id"]
        self.jobs[job] = count
        choice = rng.random()
        if choice < 0.15:
            await client.delete(f"v1/jobs/{job}")
        elif choice < 0.5:
            # A reader that leaves in the middle.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rng.random()):
                    await client.get(f"v1/jobs/{job}/events")
        else:
            await client.get(f"v1/jobs/{job}", params={"wait": 20})

    async def killer(self) -> None:
        """Kill the drawer every few seconds."""
        while time.monotonic() < self.until:
            await asyncio.sleep(8)
            for pid in self.server.drawer_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def remover(self, url: str) -> None:
        """Remove a photograph every few seconds."""
        for number in range(4):
            await asyncio.sleep(6)
            builder = update_builder(url, Removal(frozenset([f"{number}.jpg"])), only_delete=True)
            await asyncio.to_thread(run_build, builder, ComputeConfig(dask="inline"))


async def terminal_events(address: str, job: str) -> list[tuple[str, Any]]:
    """Return the terminal events of a job, and a snapshot's data before them."""
    found = []
    async with httpx.AsyncClient(base_url=address, timeout=180) as client:
        text = (await client.get(f"v1/jobs/{job}/events")).text
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields.get("event") in TERMINAL:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_every_accepted_job_ends_exactly_once(
    tmp_path: Path,
    encoder_config: Path,
    encoded: Callable[..., bytes],
    tiny_encoder: str,
    model_folder: Path,
) -> None:
    database = build_database(tmp_path / "own", encoded, tiny_encoder)
    options = ("--set", "rate=100000")
    with served(tmp_path, encoder_config, {"birds": database}, model_folder, *options) as server:
        server.ready()
        load = Load(server)

        async def run() -> list[list[tuple[str, Any]]]:
            await asyncio.gather(
                *(load.client(number) for number in range(CLIENTS)),
                load.killer(),
                load.remover(database.folder.url),
            )
            return await asyncio.gather(
                *(terminal_events(server.address, job) for job in load.jobs)
            )

        ends = asyncio.run(run())
        states = Counter(name for found in ends for name, _ in found)
        print(f"{len(load.jobs)} jobs {dict(states)} refused {dict(load.refused)}")  # noqa: T201
        assert len(load.jobs) > CLIENTS
        assert [len(found) for found in ends] == [1] * len(ends)

        # Who is done has all pictures, each once; who failed was killed twice.
        for (job, count), [(name, _)] in zip(load.jobs.items(), ends, strict=True):
            view = server.client.get(f"v1/jobs/{job}").json()
            indices = [image["index"] for image in view["images"]]
            assert len(set(indices)) == len(indices)
            if name == "job.done":
                assert indices == list(range(count))
            if name == "job.failed":
                assert view["problem"]["type"] == "/errors/worker_died"
        assert server.client.get("v1/databases/birds").json()["version"] == 5
