from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdm.errors import RdmError
from rdm.sources import FetchConfig, open_source
from rdm.sources.causes import cause_of
from rdm.sources.fetching.rounds import Candidate, fetch_photographs
from rdm.sources.ingest import IngestTask, ingest_shard
from rdm.sources.source import make_listing
from rdm.storage import Folder, VersionStore

QUICK = FetchConfig(
    allow_private_addresses=True,
    attempts=3,
    backoff_seconds=0.05,
    timeout_seconds=2,
    max_seconds=20,
    max_bytes=200_000,
)
OUTPUTS = ("images/00000.tar", "images/00000.parquet", "images/00000_stats.json")
Encoded = Callable[..., bytes]
INGEST = """
import json, sys
from rdm.sources.ingest import IngestTask, ingest_shard
from rdm.sources.source import make_listing
from rdm.sources.http.client import FetchConfig
from rdm.storage import Folder, VersionStore
root, stem, source, rows, fetch = json.loads(sys.argv[1])
ingest_shard(IngestTask(Folder(root), stem, source, make_listing(rows), FetchConfig(**fetch)))
"""


def entries(count: int) -> list[dict[str, Any]]:
    return make_listing(
        [{"image_id": f"{n}", "location": f"http://h.example/{n}"} for n in range(count)]
    ).to_pylist()


def one_candidate(entry: dict[str, Any]) -> tuple[Candidate, ...]:
    return (Candidate(entry["location"]),)


def leave_round(directory: Path, pictures: dict[int, bytes], failures: dict[int, str]) -> None:
    """Lay down what img2dataset leaves behind, in its own layout."""
    (directory / "out" / "00000").mkdir(parents=True)
    rows = [
        {"row": n, "url": f"http://h.example/{n}", "candidate": 0}
        for n in sorted({*pictures, *failures})
    ]
    pq.write_table(pa.Table.from_pylist(rows), directory / "rows.parquet")
    for number, data in pictures.items():
        (directory / "out" / "00000" / f"{number:09d}.jpg").write_bytes(data)
        (directory / "out" / "00000" / f"{number:09d}.json").write_text(json.dumps({"row": number}))
    if failures:
        told = [
            {"row": n, "status": "failed_to_download", "error_message": text}
            for n, text in failures.items()
        ]
        pq.write_table(pa.Table.from_pylist(told), directory / "out" / "00000.parquet")
        (directory / "out" / "00000_stats.json").write_text("{}")


def test_what_a_killed_round_left_is_not_fetched_again(tmp_path: Path, encoded: Encoded) -> None:
    leave_round(tmp_path / "round-0", {0: encoded(0), 1: encoded(1)}, {})
    taken = list(fetch_photographs(entries(2), one_candidate, tmp_path, QUICK))
    assert [(row["status"], data) for row, data in taken] == [
        ("success", encoded(0)),
        ("success", encoded(1)),
    ]


def test_failures_that_a_round_told_of_are_rows(tmp_path: Path) -> None:
    robots = "Use of image disallowed by X-Robots-Tag directive"
    leave_round(tmp_path / "round-0", {}, {0: "not found: HTTP 404", 1: robots, 2: ""})
    rows = [row for row, _ in fetch_photographs(entries(3), one_candidate, tmp_path, QUICK)]
    assert [(row["status"], row["error_message"]) for row in rows] == [
        ("failed", "not found: HTTP 404"),
        ("skipped", "opted out: X-Robots-Tag"),
        ("failed", "download failed"),
    ]


def test_bytes_are_compared_with_the_checksum(tmp_path: Path, encoded: Encoded) -> None:
    leave_round(tmp_path / "round-0", {0: encoded(0), 1: encoded(1)}, {})
    checksum = base64.b64encode(hashlib.md5(encoded(0)).digest()).decode()
    taken = fetch_photographs(
        entries(2), lambda entry: (Candidate(entry["location"], checksum),), tmp_path, QUICK
    )
    assert [row["error_message"] for row, _ in taken] == ["", "checksum differs"]


def test_bytes_that_are_no_picture_are_a_failure(tmp_path: Path) -> None:
    leave_round(tmp_path / "round-0", {0: b"<html>", 1: b""}, {})
    rows = [row for row, _ in fetch_photographs(entries(2), one_candidate, tmp_path, QUICK)]
    assert [row["error_message"] for row in rows] == ["not a picture", "empty file"]


def test_folder_with_an_unfinished_fetch_is_still_a_database_to_be(
    tmp_path: Path, encoded: Encoded
) -> None:
    task = task_of(["http://h.invalid/0"], tmp_path)
    leave_round(task.scratch / "round-0", {0: encoded(0)}, {})
    assert VersionStore(task.folder).current() is None


def test_photograph_without_a_candidate_is_a_row(tmp_path: Path) -> None:
    (row,) = [row for row, _ in fetch_photographs(entries(1), lambda entry: (), tmp_path, QUICK)]
    assert (row["status"], row["error_message"]) == ("failed", "not known to the source")


def test_two_processes_do_not_fetch_the_same(tmp_path: Path, encoded: Encoded) -> None:
    leave_round(tmp_path / "round-0", {0: encoded(0), 1: encoded(1)}, {})
    first = fetch_photographs(entries(2), one_candidate, tmp_path, QUICK)
    next(first)
    with pytest.raises(RdmError, match="another process fetches"):
        next(fetch_photographs(entries(2), one_candidate, tmp_path, QUICK, lock_seconds=0))


@pytest.mark.slow
def test_ingestion_killed_at_any_change_of_a_file_finishes_with_equal_bytes(
    tmp_path: Path, encoded: Encoded
) -> None:
    (tmp_path / "list.txt").write_text(
        "\n".join(f"http://h.invalid/{number}" for number in range(4))
    )
    leave_round(
        tmp_path / "round",
        {0: encoded(0), 1: encoded(1)},
        {2: "not found: HTTP 404", 3: "opted out: x"},
    )
    script = Path(__file__).with_name("kill_everywhere.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2])}
    result = subprocess.run(
        [sys.executable, script, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def troubled(server: Any, answer: Callable[..., Any], data: bytes) -> dict[str, tuple[str, int]]:
    """Serve every kind of trouble; return by URL what the ledger must say, and how often the server
    must be asked."""
    robots = {"X-Robots-Tag": "noindex, NoAI"}
    cases = {
        "/fine": ([answer(data)], "", 1),
        "/gone": ([answer(status=404)], "not found: HTTP 404", 1),
        "/busy": ([answer(status=429), answer(data)], "", 2),
        "/down": ([answer(status=500)], "server error: HTTP 500", 3),
        "/hangs": ([answer(hang=True)], "timed out: TimeoutError", 3),
        "/cut": ([answer(data[:99], declared=len(data))], "cut short: IncompleteRead", 3),
        "/cut-once": ([answer(data[:99], declared=len(data)), answer(data)], "", 2),
        "/declares-less": ([answer(data, declared=99)], "broken picture", 1),
        "/page": ([answer(b"<html>", headers={"Content-Type": "image/jpeg"})], "not a picture", 1),
        "/picture": ([answer(data, headers={"Content-Type": "text/html"})], "", 1),
        "/opted-out": ([answer(data, headers=robots)], "opted out: X-Robots-Tag", 1),
        "/not-indexed": (
            [answer(data, headers={"X-Robots-Tag": "none"})],
            "opted out: X-Robots-Tag",
            1,
        ),
        "/for-others": ([answer(data, headers={"X-Robots-Tag": "otherbot: noai"})], "", 1),
        "/for-us": (
            [answer(data, headers={"X-Robots-Tag": "rdm: noai"})],
            "opted out: X-Robots-Tag",
            1,
        ),
        "/reserved": (
            [answer(data, headers={"TDM-Reservation": "1"})],
            "opted out: TDM-Reservation",
            1,
        ),
        "/large": ([answer(bytes(300_000), declared=-1)], "too large: over 200000 bytes", 1),
        "/bomb": ([answer(png_of(30_000, 30_000))], "too many pixels", 1),
        "/nothing": ([answer(b"")], "empty file", 1),
    }
    return {
        server.serve(path, *answers): (message, asked)
        for path, (answers, message, asked) in cases.items()
    }


def task_of(urls: list[str], folder: Path, config: FetchConfig = QUICK) -> IngestTask:
    folder.mkdir(exist_ok=True)
    (folder / "list.txt").write_text("\n".join(urls))
    source = open_source(f"urls://{folder}/list.txt")
    return IngestTask(Folder(folder / "db"), "00000", source.spec, source.listing(), config)


def ledger(task: IngestTask) -> list[dict[str, Any]]:
    return task.folder.read_table(OUTPUTS[1]).to_pylist()


@pytest.mark.slow
def test_every_trouble_is_one_row_with_its_cause(
    server: Any, answer: Callable[..., Any], encoded: Encoded, tmp_path: Path
) -> None:
    expected = troubled(server, answer, encoded(0))
    task = task_of(
        [*expected, "file:///etc/passwd"], tmp_path, QUICK.model_copy(update={"user_agent": "rdm"})
    )
    stats = ingest_shard(task)
    wordy = ("broken picture", "too many pixels")  # Pillow's words follow
    told = {row["image_id"]: row["error_message"] for row in ledger(task)}
    assert {
        url: cause_of(text) if cause_of(text) in wordy else text for url, text in told.items()
    } == {
        **{url: message for url, (message, _) in expected.items()},
        "file:///etc/passwd": "not a usable URL",
    }
    assert {server.url + path: count for path, count in server.requests.items()} == {
        url: asked for url, (_, asked) in expected.items()
    }
    assert (stats.count, stats.successes, stats.failed, stats.retryable) == (
        19,
        5,
        10,
        3,
    )
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["_markers", "images"]


@pytest.mark.slow
def test_same_command_fetches_only_what_may_have_passed(
    server: Any, answer: Callable[..., Any], encoded: Encoded, tmp_path: Path
) -> None:
    urls = [server.serve("/fine", answer(encoded(0))), server.serve("/gone", answer(status=404))]
    urls.append(server.serve("/down", *[answer(status=503)] * 3, answer(encoded(1))))
    task = task_of(urls, tmp_path)
    assert ingest_shard(task).status_dict == {"success": 1, "not found": 1, "server error": 1}
    server.requests.clear()
    assert ingest_shard(task).status_dict == {"success": 2, "not found": 1}
    assert dict(server.requests) == {"/down": 1}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_fetch_ends_img2dataset_and_is_taken_up_again(
    server: Any, answer: Callable[..., Any], encoded: Encoded, tmp_path: Path
) -> None:
    urls = [server.serve(f"/{number}", answer(encoded(number))) for number in range(5)]
    urls.append(server.serve("/slow", answer(encoded(9), drip_seconds=60)))
    task = task_of(urls, tmp_path)
    rows = task.listing.to_pylist()
    arguments = json.dumps(
        [str(tmp_path / "db"), "00000", task.source, rows, task.fetch.model_dump()]
    )
    process = subprocess.Popen([sys.executable, "-c", INGEST, arguments])
    wait_until(lambda: len(list(task.scratch.glob("round-*/out/00000/*.json"))) == 5)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    wait_until(
        lambda: not any(child.is_running() and child.status() != "zombie" for child in children)
    )

    server.serve("/slow", answer(encoded(9)))
    assert ingest_shard(task).successes == 6
    assert server.requests == {**{f"/{number}": 1 for number in range(5)}, "/slow": 2}
    undisturbed = task_of(urls, tmp_path / "other")
    ingest_shard(undisturbed)
    for path in OUTPUTS:
        assert task.folder.read_bytes(path) == undisturbed.folder.read_bytes(path)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
