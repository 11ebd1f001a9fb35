"""An object store on the loopback: a real HTTP server that counts requests, and the filesystem that
speaks to it."""

from __future__ import annotations

import functools
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec

PROTOCOL = "loopback"


class _Handler(SimpleHTTPRequestHandler):
    def send_head(self) -> Any:
        """Note the request; answer it from the folder."""
        name = self.path.rpartition("/")[2]
        self.server.requests.append((self.command, name))  # type: ignore[attr-defined]
        if name in self.server.broken:  # type: ignore[attr-defined]
            self.send_error(503)
            return None
        return super().send_head()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send the file, or half of it before the connection breaks."""
        data = source.read()
        cut = self.path.rpartition("/")[2] in self.server.cut  # type: ignore[attr-defined]
        outputfile.write(data[: len(data) // 2] if cut else data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class LoopbackFileSystem(fsspec.AbstractFileSystem):
    """`loopback://HOST:PORT/PATH`: whole files, one request each."""

    protocol = PROTOCOL

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Ask for the size of a file."""
        with self._ask("HEAD", path) as answer:
            return {"name": path, "size": int(answer.headers["Content-Length"]), "type": "file"}

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Fetch a file."""
        with self._ask("GET", path) as answer:
            return answer.read()

    def _ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"http://{self._strip_protocol(path)}", method=method)
        try:
            return urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise FileNotFoundError(path) from error
            raise


class Store:
    """What is served, and what was asked for."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.url = f"{PROTOCOL}://127.0.0.1:{server.server_address[1]}"
        self.broken: set[str] = server.broken  # type: ignore[attr-defined]
        self.cut: set[str] = server.cut  # type: ignore[attr-defined]

    def take_requests(self) -> list[tuple[str, str]]:
        """Return the requests since the last call, as `(method, file name)`."""
        requests, self._server.requests = self._server.requests, []  # type: ignore[attr-defined]
        return requests


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    """Serve a folder."""
    fsspec.register_implementation(PROTOCOL, LoopbackFileSystem, clobber=True)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder))
    )
    server.requests, server.broken, server.cut = [], set(), set()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Store(server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
