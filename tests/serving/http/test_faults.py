"""What happens when things go wrong under a running server: kills, restarts, swaps, removals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from live_server import Running, build_database, served

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
Serve = Callable[..., Running]
SLOW = {"num_steps": 200}


def wait_for_start(server: Running, job_id: str) -> None:
    end = time.monotonic() + 30
    while server.client.get(f"v1/jobs/{job_id}").json()["state"] == "queued":
        assert time.monotonic() < end
        time.sleep(0.02)


def remove(database: RetrievalDatabase, image_id: str) -> None:
    removal = Removal(frozenset([image_id]))
    builder = update_builder(database.folder.url, removal, only_delete=True)
    run_build(builder, ComputeConfig(dask="inline"))


def test_a_killed_drawer_loses_nothing_and_kills_only_so_often(
    tmp_path: Path, encoder_config: Path, database: RetrievalDatabase, model_folder: Path
) -> None:
    with served(tmp_path, encoder_config, {"birds": database}, model_folder) as server:
        server.ready()
        job = server.submit(seeds="0-3", settings=SLOW)
        waiting = server.submit(seeds="9")
        wait_for_start(server, job["id"])
        (pid,) = server.drawer_pids()
        os.kill(pid, signal.SIGKILL)

        ended = server.ended(job["id"], 120)
        assert ended["state"] == "done"
        assert [image["index"] for image in ended["images"]] == [0, 1, 2, 3]
        assert server.ended(waiting["id"])["state"] == "done"
        names = [name for _, name, _ in server.events(job["id"])]
        assert names.count("job.done") == 1
        assert names.count("image.done") == 4
        assert "rdm_serve_drawer_restarts_total 1.0" in server.client.get("metrics").text

        # A job that kills its drawer twice is given up; the server is not.
        poison = server.submit(seeds="0-3", settings=SLOW)
        for _ in range(2):
            server.ready()
            end = time.monotonic() + 60
            while not (pids := server.drawer_pids()) or not _is_drawing(server):
                assert time.monotonic() < end
                time.sleep(0.02)
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(0.2)
        failed = server.ended(poison["id"])
        assert failed["state"] == "failed"
        assert failed["problem"]["type"] == "/errors/worker_died"
        assert server.ended(server.submit()["id"], 60)["state"] == "done"


def _is_drawing(server: Running) -> bool:
    """Whether the queue is empty and a drawer works."""
    metrics = server.client.get("metrics").text
    return "rdm_serve_queue_depth 0.0" in metrics and "rdm_serve_drawers_ready 1.0" in metrics


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_that_wait_survive_the_end_of_the_server(
    tmp_path: Path,
    encoder_config: Path,
    database: RetrievalDatabase,
    model_folder: Path,
    number: signal.Signals,
) -> None:
    with served(tmp_path, encoder_config, {"birds": database}, model_folder) as server:
        server.ready()
        done = server.ended(server.submit(seeds="7")["id"])
        jobs = [server.submit(seeds=f"{first}-{first + 3}", settings=SLOW) for first in (0, 10)]
        wait_for_start(server, jobs[0]["id"])
        server.process.send_signal(number)
        status = server.process.wait(timeout=60)
        assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)

    with served(tmp_path, encoder_config, {"birds": database}, model_folder) as server:
        server.ready()
        for job in jobs:
            ended = server.ended(job["id"], 120)
            assert ended["state"] == "done"
            assert len(ended["images"]) == 4
        again = server.client.get(f"v1/jobs/{done['id']}").json()
        assert again == done
        history = server.client.get("v1/history").json()["data"]
        assert len(history) == 9
        assert [name for _, name, _ in server.events(done["id"])] == ["job.snapshot", "job.done"]


def test_a_new_version_is_served_and_what_was_removed_is_gone_within_a_second(
    tmp_path: Path,
    encoder_config: Path,
    encoded: Callable[..., bytes],
    tiny_encoder: str,
    model_folder: Path,
) -> None:
    database = build_database(tmp_path / "own", encoded, tiny_encoder)
    with served(tmp_path, encoder_config, {"birds": database}, model_folder) as server:
        server.ready()
        drawn = server.ended(server.submit()["id"])
        gone = drawn["neighbors"][0]
        image = f"v1/databases/birds/patches/{gone['patch_id']}/image"
        shown = server.client.get(image)
        assert shown.status_code == 200

        remove(database, gone["image_id"])
        end = time.monotonic() + 1.0
        cached = {"If-None-Match": shown.headers["etag"]}
        while server.client.get(image, headers=cached).status_code != 410:
            assert time.monotonic() < end
            time.sleep(0.02)

        # In no look-up, thumbnail, credit or recipe any more.
        again = server.client.post("v1/neighbors", json={"texts": ["an owl"]}).json()
        assert again["databases"] == [{"name": "birds", "version": 2}]
        assert gone["image_id"] not in [one["image_id"] for one in again["neighbors"]]
        answer = server.client.post("v1/jobs", json={"patches": [str(gone["patch_id"])]})
        assert answer.status_code == 410
        assert answer.json()["type"] == "/errors/patch_removed"
        picture = drawn["images"][0]
        credits = server.client.get(picture["credits"]).json()
        assert credits["conditioned_on_removed"]
        assert credits["neighbors"][0]["is_removed"]
        recipe = server.client.get(picture["recipe"]).json()
        for told in (credits["neighbors"], credits["text"], recipe):
            assert gone["image_id"] not in str(told)
        # It is not drawn from either.
        ended = server.ended(server.submit()["id"])
        assert gone["patch_id"] not in [one["patch_id"] for one in ended["neighbors"]]


def test_versions_that_are_left_are_let_go(
    tmp_path: Path,
    encoder_config: Path,
    encoded: Callable[..., bytes],
    tiny_encoder: str,
    model_folder: Path,
) -> None:
    database = build_database(tmp_path / "own", encoded, tiny_encoder)
    with served(tmp_path, encoder_config, {"birds": database}, None) as server:
        server.ready()

        def num_maps() -> int:
            maps = Path(f"/proc/{server.process.pid}/maps").read_text()
            return maps.count("img_emb_")

        server.client.post("v1/neighbors", json={"texts": ["an owl"], "settings": {"k": 2}})
        before = num_maps()
        for version, name in enumerate(("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"), start=2):
            remove(database, name)
            end = time.monotonic() + 5
            while server.client.get("v1/databases/birds").json()["version"] != version:
                assert time.monotonic() < end
                time.sleep(0.05)
        server.client.post("v1/neighbors", json={"texts": ["an owl"], "settings": {"k": 2}})
        # Of six versions the newest, and at most one that a thread has just read.
        assert num_maps() <= before + 1


def test_without_a_model_photographs_are_searched_and_pictures_refused(
    tmp_path: Path, encoder_config: Path, database: RetrievalDatabase
) -> None:
    with served(tmp_path, encoder_config, {"birds": database}, None) as server:
        server.ready()
        found = server.client.post("v1/neighbors", json={"texts": ["an owl"]}).json()
        assert len(found["neighbors"]) == 4
        answer = server.client.post("v1/jobs", json={"texts": ["an owl"]})
        assert answer.json()["type"] == "/errors/unknown_model"


def test_a_database_of_another_encoder_is_refused_by_both_names(
    tmp_path: Path,
    encoder_config: Path,
    encoded: Callable[..., bytes],
    make_encoder: Callable[[int], str],
    database: RetrievalDatabase,
    model_folder: Path,
) -> None:
    other = build_database(tmp_path / "own", encoded, make_encoder(1))
    databases = {"other": other, "birds": database}
    with served(tmp_path, encoder_config, databases, model_folder) as server:
        server.ready()
        info = server.client.get("v1/databases/other").json()
        assert info["models"] == []
        assert other.encoder_digest in info["refused"]["tiny"]
        asked = {"texts": ["x"], "retrieval": {"databases": [{"name": "other"}]}}
        answer = server.client.post("v1/jobs", json=asked)
        assert answer.status_code == 409
        assert answer.json()["type"] == "/errors/encoder_mismatch"
        # The default is the first that fits.
        assert server.ended(server.submit()["id"])["databases"][0]["name"] == "birds"


def test_the_queue_is_full_all_or_nothing(
    tmp_path: Path, encoder_config: Path, database: RetrievalDatabase, model_folder: Path
) -> None:
    options = ("--set", "max_per_client=2", "--set", "max_queued=3")
    with served(tmp_path, encoder_config, {"birds": database}, model_folder, *options) as server:
        server.ready()
        jobs = [server.submit(settings=SLOW) for _ in range(2)]
        asked = {"texts": ["x"], "settings": SLOW}
        full = server.client.post("v1/jobs", json=asked)
        assert (full.status_code, full.json()["type"]) == (429, "/errors/client_queue_full")
        assert int(full.headers["retry-after"]) >= 1
        other = server.client.post("v1/jobs", json=asked, headers={"RDM-Client": "other"})
        assert other.status_code == 202
        third = server.client.post("v1/jobs", json=asked, headers={"RDM-Client": "third"})
        assert (third.status_code, third.json()["type"]) == (503, "/errors/queue_full")
        for job in (*jobs, other.json()):
            server.client.delete(f"v1/jobs/{job['id']}")


def test_a_token_is_wanted_everywhere_but_on_the_page(
    tmp_path: Path, encoder_config: Path, database: RetrievalDatabase
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-more-than-sixteen\n")
    token.chmod(0o600)
    options = ("--token-file", str(token))
    with served(tmp_path, encoder_config, {"birds": database}, None, *options) as server:
        assert server.client.get("").status_code == 200
        assert server.client.get("v1/databases").status_code == 401
        wrong = server.client.post("v1/session", json={"token": "wrong"})
        assert wrong.status_code == 401
        signed = server.client.post("v1/session", json={"token": token.read_text().strip()})
        assert signed.status_code == 204
        cookie = signed.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert token.read_text().strip() not in cookie
        server.ready()
        assert server.client.get("v1/databases").status_code == 200


def test_a_model_that_cannot_be_opened_ends_the_server_with_what_to_do(
    tmp_path: Path, encoder_config: Path, database: RetrievalDatabase, model_folder: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    for weights in (broken / "network").glob("*.safetensors"):
        weights.write_bytes(b"no weights")
    with served(tmp_path, encoder_config, {"birds": database}, broken) as server:
        assert server.process.wait(timeout=90) == 1
    log = (tmp_path / "log").read_text()
    assert "fix:" in log
    assert "Traceback" not in log


def test_a_taken_port_and_a_taken_folder_are_told(
    tmp_path: Path, encoder_config: Path, database: RetrievalDatabase
) -> None:
    with served(tmp_path, encoder_config, {"birds": database}, None) as server:
        port = server.address.rstrip("/").rsplit(":", 1)[1]
        start = "from rdm.cli.main import main; main()"
        command = [sys.executable, "-c", start, "serve", "--database", f"b={database.folder.url}"]
        for data, number, said in (
            (tmp_path / "data", "0", "is serving from this folder"),
            (tmp_path / "other", port, f"port {port}"),
        ):
            done = subprocess.run(
                [*command, "--data", str(data), "--port", number],
                capture_output=True,
                text=True,
                timeout=150,
                check=False,
            )
            assert done.returncode == 1, done.stderr
            assert said in done.stderr
