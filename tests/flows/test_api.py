"""What `rdm doctor` says of the Prefect settings in force."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

DEAD = "http://127.0.0.1:4/api"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
_CHECK = """
import json
from flows.api import check_flows
from rdm.errors import RdmError
try:
    print(json.dumps(check_flows()))
except RdmError as error:
    print(json.dumps((False, error.what, error.fix)))
"""


class _Refusing(BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST  # noqa: N815  as the base class calls it

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    thread.join()
    server.server_close()


def check(folder: Path, files: dict[str, str] | None = None, **given: str) -> tuple[bool, str, str]:
    """Return the finding in a folder with some files and variables."""
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    kept = {
        name: value for name, value in os.environ.items() if not name.upper().startswith("PREFECT_")
    }
    environment = {**kept, "PREFECT_HOME": str(folder / "home"), **given}
    done = subprocess.run(
        [sys.executable, "-c", _CHECK],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def test_without_settings_flows_start_a_temporary_server(tmp_path: Path) -> None:
    ok, found, _ = check(tmp_path)
    assert (ok, "a temporary server in" in found) == (True, True)


@pytest.mark.parametrize(
    ("files", "given", "words", "mend"),
    [
        ({}, {"PREFECT_API_URL": DEAD}, "cannot be reached", "prefect server start"),
        ({".env": f"PREFECT_API_URL={DEAD}"}, {}, "cannot be reached", "correct PREFECT_API_URL"),
        (
            {},
            {"PREFECT_API_URL": DEAD, "ALL_PROXY": "socks5://127.0.0.1:9"},
            "cannot be",
            "ALL_PROXY is set: unset it",
        ),
        ({"prefect.toml": "[[["}, {}, "settings cannot be read", ".env, prefect.toml"),
        ({}, {"PREFECT_SERVER_API_PORT": "none"}, "settings cannot be read", "correct PREFECT_*"),
        (
            {},
            {"PREFECT_SERVER_EPHEMERAL_ENABLED": "false"},
            "no Prefect server",
            "prefect server start",
        ),
        ({}, {"PREFECT_HOME": "/proc/none"}, "cannot write its home", "export PREFECT_HOME"),
    ],
)
def test_settings_that_would_stop_flows_are_told_with_what_to_type(
    tmp_path: Path, files: dict[str, str], given: dict[str, str], words: str, mend: str
) -> None:
    ok, found, fix = check(tmp_path, files, **given)
    assert not ok
    assert words in found
    assert mend in fix
    assert "rdm quickstart" in fix


def test_refused_credentials_are_told_from_a_server_that_is_down(
    tmp_path: Path, refusing: str
) -> None:
    ok, found, fix = check(tmp_path, PREFECT_API_URL=refusing)
    assert (ok, "refuses with status 401" in found, "PREFECT_API_KEY" in fix) == (False, True, True)
