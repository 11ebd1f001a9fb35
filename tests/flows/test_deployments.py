"""infra/prefect.yaml: its parameters against the flows, and all of it on a real server with a real
worker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from rdm.sources import open_source
from rdm.storage import Folder, VersionStore

PREFECT_FILE = Path(__file__).parents[2] / "infra" / "prefect.yaml"
DEPLOYMENTS = {
    entry["entrypoint"]: entry for entry in yaml.safe_load(PREFECT_FILE.read_text())["deployments"]
}
RDM = str(Path(sys.executable).with_name("rdm"))
FLOWS = {"build-database", "update-database", "verify-database", "train", "sample", "evaluate"}
TRIGGERS = {
    "update-database when a source changed": True,
    "verify-database when a database was updated": True,
    "train when its database was updated": False,
    "evaluate when its database was updated": False,
}
"""The automations, and whether they are on before anybody touches them."""
AUTOMATED = "AUTOMATION"
EMIT = (
    sys.executable,
    "-m",
    "prefect",
    "event",
    "emit",
    "rdm.source.changed",
    "--resource-id",
    "rdm.source.birds",
)


@pytest.mark.parametrize("entrypoint", DEPLOYMENTS)
def test_parameters_of_each_deployment_fit_its_flow(entrypoint: str) -> None:
    flow = _load_flow(entrypoint)
    parameters = DEPLOYMENTS[entrypoint]["parameters"]
    flow.validate_parameters(parameters)
    required = {
        name for name, parameter in flow.parameters.properties.items() if "default" not in parameter
    }
    assert required <= set(parameters)


def test_every_deployment_is_named_default_and_every_flow_has_one() -> None:
    assert {_load_flow(entrypoint).name for entrypoint in DEPLOYMENTS} == FLOWS
    assert {entry["name"] for entry in DEPLOYMENTS.values()} == {"default"}


def test_what_writes_a_database_shares_the_queue_that_runs_one_at_a_time() -> None:
    writers = [
        entry
        for entry in DEPLOYMENTS.values()
        if entry["work_pool"].get("work_queue_name") == "writers"
    ]
    assert {_load_flow(entry["entrypoint"]).name for entry in writers} == {
        "build-database",
        "update-database",
        "train",
    }
    assert yaml.safe_load(PREFECT_FILE.read_text())["work_pools"][0]["queues"]["writers"] == 1


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
class TestOnAServer:
    """A server on a free port, `rdm deploy`, and a worker; everything in one temporary folder."""

    def test_deploying_registers_schedule_and_queue_limits(self, prefect: Prefect) -> None:
        found = prefect.post("deployments/filter", {})
        assert {deployment["name"] for deployment in found} == {"default"}
        assert {deployment["entrypoint"] for deployment in found} == set(DEPLOYMENTS)
        schedules = {
            deployment["entrypoint"]: [item["schedule"]["cron"] for item in deployment["schedules"]]
            for deployment in found
            if deployment["schedules"]
        }
        assert schedules == {"flows.update_database.update_database": ["0 3 * * *"]}
        queues = {
            queue["name"]: queue["concurrency_limit"]
            for queue in prefect.post("work_queues/filter", {})
        }
        assert queues == {"default": None, "writers": 1}

    def test_deploying_again_changes_nothing(self, prefect: Prefect) -> None:
        before = sorted(deployment["id"] for deployment in prefect.post("deployments/filter", {}))
        prefect.command(RDM, "deploy", "--prefect-file", str(PREFECT_FILE))
        assert (
            sorted(deployment["id"] for deployment in prefect.post("deployments/filter", {}))
            == before
        )
        assert {
            found["name"]: found["enabled"] for found in prefect.post("automations/filter", {})
        } == TRIGGERS

    def test_updating_what_is_no_database_fails_and_says_how_to_make_one(
        self, prefect: Prefect
    ) -> None:
        run = prefect.run("update-database/default", root="nowhere")
        assert run["state_type"] == "FAILED"
        assert "this folder is not a retrieval database" in run["state"]["message"]
        assert not (prefect.folder / "nowhere").exists()

    def test_a_change_of_the_source_runs_through_to_what_depends_on_it(
        self, prefect: Prefect
    ) -> None:
        """Source changed, so an update runs; the database was updated, so what the update wrote is
        verified."""
        root, photographs = "build/deployed/database", prefect.folder / "changing"
        source = write_photographs(photographs, "samples://openimages-birds/database", 31)
        gone, *_, new = sorted(photographs.iterdir())
        aside = new.rename(prefect.folder / new.name)
        prefect.command(
            RDM, "database", "build", "--root", root, "--source", source, "--preset", "samples"
        )
        gone.unlink()
        aside.rename(new)

        prefect.command(*EMIT)
        updated = prefect.ended("flows.update_database.update_database", AUTOMATED)[0]
        assert updated["state_type"] == "COMPLETED", updated["state"]["message"]
        verified = prefect.ended("flows.verify_database.verify_database", AUTOMATED)[0]
        assert verified["state_type"] == "COMPLETED", verified["state"]["message"]
        assert verified["parameters"] == {"root": root, "since": 1}

        artifacts = {found["key"]: found for found in prefect.post("artifacts/latest/filter", {})}
        told = {
            row["what"]: row["count"] for row in json.loads(artifacts["database-changes"]["data"])
        }
        assert (told["photographs added"], told["photographs: vanished from the source"]) == (
            "1",
            "1",
        )
        assert (prefect.folder / root / "changes.html").as_uri() in artifacts["database-gallery"][
            "data"
        ]
        page = (prefect.folder / root / "changes.html").read_text(encoding="utf-8")
        assert new.name in page
        assert gone.name in page
        assert page.count("<img") == 2  # the patches of the one new photograph
        assert json.loads(artifacts["verification"]["data"]) == [{"finding": "all is well"}]

        prefect.command(*EMIT)
        again = prefect.ended("flows.update_database.update_database", AUTOMATED, count=2)[0]
        assert any("nothing changed" in line for line in prefect.logs(again))
        assert prefect.count_events("rdm.database.updated") == 1

    def test_build_then_train_then_update_complete(self, prefect: Prefect) -> None:
        source = write_photographs(
            prefect.folder / "photographs", "samples://openimages-birds/database", 40
        )
        built = prefect.run(
            "build-database/default", root="own", source=source, preset="samples", dask="inline"
        )
        assert built["state_type"] == "COMPLETED", built["state"]["message"]
        version = VersionStore(Folder(prefect.folder / "own")).require()
        assert (version.number, version.num_images) == (1, 40)

        queries = write_photographs(
            prefect.folder / "queries", "samples://openimages-birds/queries", 48
        )
        trained = prefect.run(
            "train/default",
            database="own",
            queries=queries,
            dask="inline",
            overrides=["max_steps=10"],
        )
        assert trained["state_type"] == "COMPLETED", trained["state"]["message"]
        assert (prefect.folder / "build/deployed/run/model/model.json").is_file()

        version = VersionStore(Folder(prefect.folder / "own")).require()
        assert (version.number, len(version.parts_of("queryset"))) == (2, 1)
        run = prefect.run("update-database/default", root="own")
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        assert VersionStore(Folder(prefect.folder / "own")).require() == version
        assert any("nothing changed" in line for line in prefect.logs(run))

        artifacts = {
            artifact["key"]: artifact["type"]
            for artifact in prefect.post("artifacts/latest/filter", {})
        }
        assert artifacts["database"] == "table"
        assert artifacts["training"] == "markdown"
        progress = {key for key, kind in artifacts.items() if kind == "progress"}
        assert {"ingest", "embed", "neighbors", "train"} <= progress


@dataclass(frozen=True)
class Prefect:
    """A Prefect server with a worker, and the folder in which they work."""

    api: str
    folder: Path
    environment: dict[str, str]

    def command(self, *command: str, succeed: bool | None = True) -> str:
        """Run a command to its end in the folder; return what it wrote."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert succeed is None or (done.returncode == 0) == succeed, done.stdout
        return done.stdout

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask the server."""
        return httpx.post(f"{self.api}/{path}", json=body, timeout=30).raise_for_status().json()

    def flow_runs(self) -> list[dict[str, Any]]:
        """Return the runs, newest first."""
        return self.post("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})

    def run(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Run a deployment as a user does, wait for its end, and return the run."""
        known = {run["id"] for run in self.flow_runs()}
        said = self.command(
            sys.executable,
            "-m",
            "prefect",
            "deployment",
            "run",
            deployment,
            "--watch",
            "--params",
            json.dumps(parameters),
            succeed=None,
        )
        mine = [run for run in self.flow_runs() if run["id"] not in known and run["id"] in said]
        assert len(mine) == 1, said
        return mine[0]

    def ended(self, entrypoint: str, created_by: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the runs of a flow that something started, newest first, once there are so many
        and all have ended."""
        deployments = self.post("deployments/filter", {})
        (deployment,) = (found["id"] for found in deployments if found["entrypoint"] == entrypoint)

        def runs() -> list[dict[str, Any]]:
            mine = [run for run in self.flow_runs() if run["deployment_id"] == deployment]
            mine = [run for run in mine if (run["created_by"] or {}).get("type") == created_by]
            finished = all(
                run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for run in mine
            )
            return mine if len(mine) >= count and finished else []

        return wait_until(runs, 400, f"{entrypoint} was not run {count} times")

    def count_events(self, name: str) -> int:
        """Return how many events of a name the server has received."""
        return self.post("events/filter", {"filter": {"event": {"name": [name]}}})["total"]

    def logs(self, run: dict[str, Any]) -> list[str]:
        """Return the log lines of a run, once there are any."""

        def lines() -> list[str]:
            rows = self.post("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
            return [row["message"] for row in rows]

        wait_until(
            lambda: any("Finished in state" in line for line in lines()),
            30,
            "the log does not arrive",
        )
        return lines()


def write_photographs(folder: Path, source: str, count: int) -> str:
    """Write the first photographs of a source as files; return the specification of their
    folder."""
    folder.mkdir()
    opened = open_source(source)
    for location in opened.listing()["location"].to_pylist()[:count]:
        (folder / location).write_bytes(opened.read(location))
    return f"folder://{folder}"


def wait_until(condition: Callable[[], Any], seconds: float, otherwise: str) -> Any:
    """Return the first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.5)
    pytest.fail(f"{otherwise} within {seconds} s")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("deployed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
    }
    found = Prefect(api, folder, environment)
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(
            _start(found, "server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        )
        wait_until(lambda: _healthy(api), 180, "the server does not answer")
        found.command(RDM, "deploy", "--prefect-file", str(PREFECT_FILE))
        started.append(
            _start(found, "worker", "worker", "start", "--pool", "default", "--name", "tested")
        )
        yield found
    finally:
        for process in reversed(started):
            _end(process)


def _start(prefect: Prefect, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    with open(prefect.folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=prefect.folder,
            env=prefect.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that a test started, and everything below it."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in below:
        if child.is_running():
            child.kill()
    psutil.wait_procs(below, 10)


def _healthy(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _load_flow(entrypoint: str) -> Any:
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(entrypoint)
