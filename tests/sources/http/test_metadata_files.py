from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.errors import SourceError
from rdm.sources.http.client import FetchConfig
from rdm.sources.http.metadata_files import download

QUICK = FetchConfig(
    allow_private_addresses=True,
    attempts=2,
    backoff_seconds=0.001,
    timeout_seconds=0.2,
    max_bytes=10,
)
Serve = Callable[..., Any]
TAGS = {"ETag": '"1"', "Last-Modified": "Mon, 23 Nov 2026 12:00:00 GMT"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDM_CACHE", str(tmp_path / "cache"))


def test_file_larger_than_a_picture_may_be_arrives(server: Any, answer: Serve) -> None:
    assert (
        download(server.serve("/a.csv", answer(b"x" * 200_000)), QUICK).read_bytes()
        == b"x" * 200_000
    )


def test_unchanged_file_is_not_sent_again(server: Any, answer: Serve) -> None:
    url = server.serve("/a.csv", answer(b"one", headers=TAGS), answer(status=304))
    assert download(url, QUICK) == download(url, QUICK)
    asked = server.request_headers[1]
    assert (asked["If-None-Match"], asked["If-Modified-Since"]) == (
        TAGS["ETag"],
        TAGS["Last-Modified"],
    )


def test_changed_file_takes_the_place_of_the_old(server: Any, answer: Serve) -> None:
    url = server.serve("/a.csv", answer(b"one", headers=TAGS), answer(b"two"))
    download(url, QUICK)
    assert download(url, QUICK).read_bytes() == b"two"


def test_damaged_copy_is_fetched_whole(server: Any, answer: Serve) -> None:
    url = server.serve("/a.csv", answer(b"one", headers=TAGS))
    download(url, QUICK).write_bytes(b"on")
    assert download(url, QUICK).read_bytes() == b"one"
    assert server.request_headers[1]["If-None-Match"] is None


def test_cut_file_is_fetched_again(server: Any, answer: Serve) -> None:
    url = server.serve("/a.csv", answer(b"on", declared=3), answer(b"one"))
    assert download(url, QUICK).read_bytes() == b"one"


def test_file_that_cannot_be_checked_is_an_error(server: Any, answer: Serve) -> None:
    url = server.serve("/a.csv?token=abc", answer(b"one", headers=TAGS), answer(status=500))
    download(url, QUICK)
    with pytest.raises(SourceError, match="server error: HTTP 500") as caught:
        download(url, QUICK)
    assert caught.value.where == f"{server.url}/a.csv?token=***"


def test_copy_keeps_the_ending_that_tells_its_kind(server: Any, answer: Serve) -> None:
    names = {"/a.csv": ".csv", "/b.csv.gz?x=.y": ".csv.gz", "/c": "", "/d.csv/..%2Fe": ""}
    for path, ending in names.items():
        found = download(server.serve(path, answer(b"one")), QUICK)
        assert "".join(found.suffixes) == ending


def test_copy_of_a_compressed_answer_is_plain(server: Any, answer: Serve) -> None:
    url = server.serve(
        "/a.csv", answer(gzip.compress(b"one"), headers={**TAGS, "Content-Encoding": "gzip"})
    )
    assert download(url, QUICK).read_bytes() == b"one"
    server.serve("/a.csv", answer(status=304))
    assert download(url, QUICK).read_bytes() == b"one"
