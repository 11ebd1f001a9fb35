from __future__ import annotations

import gzip
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from rdm.sources.http.client import FetchConfig, PatientOpener, TransferError, failure_of, retrying

QUICK = FetchConfig(
    allow_private_addresses=True,
    attempts=3,
    backoff_seconds=0.001,
    timeout_seconds=0.2,
    max_seconds=0.5,
    max_bytes=5000,
)
PICTURE = bytes(range(256)) * 8
Serve = Callable[..., Any]


def fetch(url: str, config: FetchConfig = QUICK) -> bytes:
    with PatientOpener(config).open(urllib.request.Request(url)) as response:
        return response.read()


def error_of(url: str, config: FetchConfig = QUICK) -> str:
    with pytest.raises(TransferError) as caught:
        fetch(url, config)
    return str(caught.value)


def test_body_status_and_headers_arrive(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(PICTURE, headers={"X-Robots-Tag": "noai"}))
    with PatientOpener(QUICK).open(url) as response:
        assert (response.read(), response.status, response.headers["X-Robots-Tag"]) == (
            PICTURE,
            200,
            "noai",
        )


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "not found: HTTP 404"),
        (410, "not found: HTTP 410"),
        (403, "refused by the server: HTTP 403"),
        (451, "refused by the server: HTTP 451"),
    ],
)
def test_refusal_is_asked_once(server: Any, answer: Serve, status: int, message: str) -> None:
    assert error_of(server.serve("/a", answer(status=status))) == message
    assert server.requests["/a"] == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "too many requests: HTTP 429"),
        (408, "timed out: HTTP 408"),
        (500, "server error: HTTP 500"),
        (503, "server error: HTTP 503"),
    ],
)
def test_trouble_that_stays_uses_every_attempt(
    server: Any, answer: Serve, status: int, message: str
) -> None:
    assert error_of(server.serve("/a", answer(status=status))) == message
    assert server.requests["/a"] == 3


def test_trouble_that_passes_costs_one_attempt(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(status=429), answer(PICTURE))
    assert fetch(url) == PICTURE
    assert server.requests["/a"] == 2


def test_retry_after_is_heard_up_to_the_longest_pause(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(status=429, headers={"Retry-After": "3600"}), answer(PICTURE))
    started = time.monotonic()
    assert fetch(url, QUICK.model_copy(update={"max_backoff_seconds": 0.1})) == PICTURE
    assert 0.1 <= time.monotonic() - started < 10


def retry_after(server: Any, answer: Serve, wait: str) -> float:
    url = server.serve("/a", answer(status=503, headers={"Retry-After": wait}))
    with pytest.raises(TransferError) as caught:
        fetch(url, QUICK.model_copy(update={"attempts": 1}))
    return caught.value.retry_after


@pytest.mark.parametrize(
    ("wait", "seconds"), [("120", 120), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)]
)
def test_retry_after_is_a_number_or_a_date_that_may_be_past(
    server: Any, answer: Serve, wait: str, seconds: float
) -> None:
    assert retry_after(server, answer, wait) == seconds


def test_retry_after_a_date_is_the_time_until_then(server: Any, answer: Serve) -> None:
    wait = formatdate(time.time() + 900, usegmt=True)
    assert retry_after(server, answer, wait) == pytest.approx(900, abs=60)


def test_pause_doubles(server: Any, answer: Serve) -> None:
    started = time.monotonic()
    error_of(
        server.serve("/a", answer(status=500)), QUICK.model_copy(update={"backoff_seconds": 0.05})
    )
    assert time.monotonic() - started >= 0.05 + 0.1


def test_silent_server_times_out(server: Any, answer: Serve) -> None:
    assert error_of(
        server.serve("/a", answer(hang=True)), QUICK.model_copy(update={"attempts": 1})
    ).startswith("timed out")


def test_server_that_drips_runs_out_of_time(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(PICTURE, drip_seconds=0.01))
    assert error_of(url, QUICK.model_copy(update={"attempts": 1})) == "timed out: too slow"


def test_cut_body_is_fetched_again(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(PICTURE[:100], declared=len(PICTURE)), answer(PICTURE))
    assert fetch(url) == PICTURE


def test_body_that_is_always_cut_is_an_error(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(PICTURE[:100], declared=len(PICTURE)))
    assert error_of(url) == "cut short: IncompleteRead"


def test_no_more_is_read_than_was_declared(server: Any, answer: Serve) -> None:
    assert fetch(server.serve("/a", answer(PICTURE, declared=100))) == PICTURE[:100]


def test_body_of_undeclared_length_is_read_to_its_end(server: Any, answer: Serve) -> None:
    assert fetch(server.serve("/a", answer(PICTURE, declared=-1))) == PICTURE


@pytest.mark.parametrize("declared", [6000, -1], ids=["declared", "not declared"])
def test_large_body_is_refused(server: Any, answer: Serve, declared: int) -> None:
    assert (
        error_of(server.serve("/a", answer(bytes(6000), declared=declared)))
        == "too large: over 5000 bytes"
    )
    assert server.requests["/a"] == 1


def test_reservation_of_mining_rights_is_an_opt_out(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(PICTURE, headers={"TDM-Reservation": "1"}))
    assert error_of(url) == "opted out: TDM-Reservation"


def test_closed_port_is_no_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        message = error_of(f"http://127.0.0.1:{unused.getsockname()[1]}/a")
    assert message == "no connection: ConnectionRefusedError"


def test_redirect_is_followed(server: Any, answer: Serve) -> None:
    server.serve("/b", answer(PICTURE))
    assert fetch(server.serve("/a", answer(status=302, headers={"Location": "/b"}))) == PICTURE


def test_redirects_end(server: Any, answer: Serve) -> None:
    url = server.serve("/a", answer(status=302, headers={"Location": "/a"}))
    assert error_of(url) == "redirect refused: HTTP 302"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file:///etc/passwd", "redirect refused: HTTP 302"),
        ("ftp://127.0.0.1/a", "redirect refused: HTTP 302"),
    ],
)
def test_redirect_out_of_the_web_is_refused(
    server: Any, answer: Serve, target: str, message: str
) -> None:
    assert error_of(server.serve("/a", answer(status=302, headers={"Location": target}))) == message


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        (
            "/caf\u00e9/\u5199\u771f \u5144.jpg".encode(),
            "/caf%C3%A9/%E5%86%99%E7%9C%9F%20%E5%85%84.jpg",
        ),
        ("caf\u00e9?q=\u5144#top".encode(), "/caf%C3%A9?q=%E5%85%84"),
        ("/caf\u00e9".encode("latin-1"), "/caf%E9"),
        (b"/a b|c{d}", "/a%20b%7Cc%7Bd%7D"),
        (b"/100%25/%C3%A9", "/100%25/%C3%A9"),
    ],
)
def test_redirect_may_be_written_in_any_letters(
    server: Any, answer: Serve, sent: bytes, asked: str
) -> None:
    server.serve(asked, answer(PICTURE))
    url = server.serve("/a", answer(status=302, headers={"Location": sent.decode("latin-1")}))
    assert fetch(url) == PICTURE


def test_redirect_to_a_host_beyond_ascii_is_asked_by_its_wire_name(
    server: Any, answer: Serve
) -> None:
    target = f"http://b\u00fccher.invalid:{server.server_port}/a".encode().decode("latin-1")
    assert error_of(server.serve("/a", answer(status=301, headers={"Location": target}))) in (
        "unknown host",
        "host not reached",
    )


RAW = zlib.compressobj(9, zlib.DEFLATED, -15)
DEFLATED = RAW.compress(PICTURE) + RAW.flush()
GZIPPED = gzip.compress(PICTURE)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", GZIPPED),
        ("x-gzip", GZIPPED),
        (" GZip ", GZIPPED),
        ("deflate", zlib.compress(PICTURE)),
        ("deflate", DEFLATED),
        ("gzip, x-gzip", gzip.compress(GZIPPED)),
        ("deflate, gzip", gzip.compress(zlib.compress(PICTURE))),
        ("gzip", gzip.compress(PICTURE[:99]) + gzip.compress(PICTURE[99:])),
        ("gzip", GZIPPED + bytes(40)),
        ("gzip", PICTURE),
        ("deflate", PICTURE),
        ("identity", PICTURE),
        ("utf-8", PICTURE),
    ],
)
def test_encoded_body_arrives_decoded(
    server: Any, answer: Serve, encoding: str, body: bytes
) -> None:
    assert (
        fetch(server.serve("/a", answer(body, headers={"Content-Encoding": encoding}))) == PICTURE
    )


@pytest.mark.parametrize("declared", [None, -1])
def test_encoded_body_that_is_cut_is_fetched_again(
    server: Any, answer: Serve, declared: int | None
) -> None:
    headers = {"Content-Encoding": "gzip"}
    url = server.serve(
        "/a",
        answer(GZIPPED[:-9], headers=headers, declared=declared),
        answer(GZIPPED, headers=headers),
    )
    assert fetch(url) == PICTURE
    broken = GZIPPED[:20] + b"\xff\xff" + GZIPPED[22:]
    assert error_of(server.serve("/b", answer(broken, headers=headers))).startswith("cut short: ")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_bomb_is_refused_at_the_largest_size_of_a_picture(
    server: Any, answer: Serve, encoding: str
) -> None:
    bomb = (
        zlib.compress(bytes(50_000_000))
        if encoding == "deflate"
        else gzip.compress(bytes(50_000_000), 1)
    )
    bomb = gzip.compress(bomb) if "," in encoding else bomb
    limit = QUICK.model_copy(
        update={"max_bytes": 1_000_000, "max_seconds": 20, "timeout_seconds": 5}
    )
    url = server.serve("/a", answer(bomb, headers={"Content-Encoding": encoding}))
    assert error_of(url, limit) == "too large: over 1000000 bytes"
    assert server.requests["/a"] == 1


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br"])
def test_encoding_that_nothing_here_undoes_is_named(
    server: Any, answer: Serve, encoding: str
) -> None:
    url = server.serve("/a", answer(PICTURE, headers={"Content-Encoding": encoding}))
    assert error_of(url) == f"unknown encoding: {encoding.split()[-1]}"
    assert server.requests["/a"] == 1


def test_streamed_body_arrives_decoded(server: Any, answer: Serve) -> None:
    url = server.serve(
        "/a", answer(gzip.compress(PICTURE * 999), headers={"Content-Encoding": "gzip"})
    )
    pieces: list[bytes] = []
    PatientOpener(QUICK).stream(urllib.request.Request(url), pieces.append)
    assert b"".join(pieces) == PICTURE * 999


def test_file_url_is_not_opened() -> None:
    assert error_of("file:///etc/passwd") == "not a usable URL: URLError"


@pytest.mark.parametrize(
    ("error", "message", "passing"),
    [
        (urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "x")), "unknown host", False),
        (urllib.error.URLError(socket.gaierror(socket.EAI_AGAIN, "x")), "host not reached", True),
        (ssl.SSLCertVerificationError("x"), "certificate refused: SSLCertVerificationError", False),
        (http.client.RemoteDisconnected("x"), "no connection: RemoteDisconnected", True),
        (http.client.BadStatusLine("token=abc"), "not an HTTP answer: BadStatusLine", False),
        (ValueError("http://host/?token=abc"), "not a usable URL: ValueError", False),
        (MemoryError(), "download failed: MemoryError", False),
    ],
)
def test_error_is_told_in_the_ledgers_words(
    error: BaseException, message: str, passing: bool
) -> None:
    failure = failure_of(error)
    assert (str(failure), failure.is_passing) == (message, passing)


def test_error_that_does_not_pass_ends_the_attempts() -> None:
    seen: list[int] = []

    def act() -> None:
        seen.append(1)
        raise TransferError("server error" if len(seen) == 1 else "not found")

    with pytest.raises(TransferError, match="not found"):
        retrying(act, QUICK)
    assert len(seen) == 2


def test_private_addresses_are_refused_unless_allowed(server: Any, answer: Serve) -> None:
    public = QUICK.model_copy(update={"allow_private_addresses": False})
    url = server.serve("/a", answer(PICTURE))
    assert error_of(url, public) == "private address: PrivateAddressError"
    assert (
        error_of(url.replace("127.0.0.1", "localhost"), public)
        == "private address: PrivateAddressError"
    )
    assert server.requests["/a"] == 0
    assert fetch(url) == PICTURE
