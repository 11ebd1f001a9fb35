"""A real HTTP server on the loopback interface that gives pictures and, on purpose, every kind of
trouble."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class Answer:
    """One answer; with `hang` it never comes."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None  # Content-Length; None: the true one, -1: none at all
    hang: bool = False
    drip_seconds: float = 0  # pause after every byte


class PictureServer(http.server.ThreadingHTTPServer):
    """Answers what `answers` holds for a path, one after another, the last for ever; anything else
    is a 404."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: Counter[str] = Counter()
        self.request_headers: list[Any] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, path: str, *answers: Answer) -> str:
        """Set what a path answers; return its URL."""
        self.answers[path] = list(answers)
        return self.url + path

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up early is part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PictureServer

    def do_GET(self) -> None:
        server = self.server
        server.requests[self.path] += 1
        server.request_headers.append(self.headers)
        waiting = server.answers.get(self.path, [Answer(status=404)])
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if answer.hang:
            server.closing.wait()
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.declared != -1:
            self.send_header(
                "Content-Length",
                str(len(answer.body) if answer.declared is None else answer.declared),
            )
        self.end_headers()
        for byte in answer.body if answer.drip_seconds else ():
            self.wfile.write(bytes([byte]))
            if server.closing.wait(answer.drip_seconds):
                return
        if not answer.drip_seconds:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[PictureServer]:
    """A server of this test alone; it ends with the test, whatever still hangs."""
    with PictureServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def answer() -> Callable[..., Answer]:
    """Return the maker of answers: `answer(body, status=404)`, with the fields of Answer."""
    return Answer
