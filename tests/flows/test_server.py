"""The quickstart's own Prefect server: what it does not read of a user's surroundings, and how it
ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.server import own_environment

# What stopped the first command of users: settings of every kind, proxies, certificates
# (prefect#5837, #6759, #19579).
HOSTILE = {
    "PREFECT_API_URL": "http://127.0.0.1:4/api",
    "prefect_api_key": "k",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://nobody@127.0.0.1:4/none",
    "PREFECT_HOME": "/proc/prefect",
    "PREFECT_PROFILE": "none",
    "PREFECT_PROFILES_PATH": "/proc/profiles.toml",
    "PREFECT_SERVER_API_PORT": "none",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "none",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "NO_PROXY": "example.org",
    "SSL_CERT_FILE": "/proc/none.pem",
    "SSLKEYLOGFILE": "/proc/none.log",
    "WEB_CONCURRENCY": "4",
    "UVICORN_PORT": "1",
}
FILES = {
    ".env": "PREFECT_API_URL=http://127.0.0.1:4/api\nPREFECT_SERVER_EPHEMERAL_ENABLED=false\n",
    "pyproject.toml": '[tool.prefect.server.database]\nconnection_url = "postgresql+asyncpg://x@127.0.0.1:4/x"\n',
    "prefect.toml": "no TOML [[[",
}
_CLIENT = """
import sys
from pathlib import Path
from flows.server import own_server
from rdm.errors import RdmError
try:
    with own_server(Path(sys.argv[1])) as url:
        from prefect import flow, task
        @task
        def add(x): return x + 1
        @flow
        def count(): return add(41)
        print(url, count(), flush=True)
        if sys.argv[2:]:
            sys.stdin.readline()
except RdmError as error:
    print(error)
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory with a user's settings for Prefect."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@contextmanager
def client(
    home: Path, work: Path, *words: str, start_new_session: bool = False, **given: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a flow on the server of its own in a hostile environment; yield its process."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, str(home), *words],
        cwd=work,
        env={**os.environ, **HOSTILE, **given},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answers(url: str) -> bool:
    """Return whether a server listens."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            return answer.status == 200
    except ConnectionError:
        return False
    except urllib.error.URLError as error:
        return not isinstance(error.reason, ConnectionError)


def test_nothing_of_a_users_prefect_proxies_and_certificates_is_left(tmp_path: Path) -> None:
    found = own_environment({**HOSTILE, "OTHER": "kept"}, tmp_path)
    assert found["OTHER"] == "kept"
    assert found["PREFECT_HOME"] == str(tmp_path)
    assert found["NO_PROXY"] == found["no_proxy"] == "*"
    changed = {name for name, value in HOSTILE.items() if found.get(name) == value}
    # of uvicorn, whose settings are given to it
    assert changed == {"WEB_CONCURRENCY", "UVICORN_PORT"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flow_runs_under_hostile_settings_in_a_folder_of_any_name(
    tmp_path: Path, work: Path
) -> None:
    with client(tmp_path / "a b?c#d %41 é" / ".prefect", work) as process:
        out, err = process.communicate(timeout=500)
    assert out.split()[1:] == ["42"], err
    assert out.startswith("http://127.0.0.1:")
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_server_ends_with_a_client_that_is_killed(tmp_path: Path, work: Path) -> None:
    with client(tmp_path / "home", work, "wait") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        assert answers(url)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while answers(url):
            assert time.monotonic() < deadline, "the server goes on alone"
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_that_cannot_start_is_told_in_three_lines_within_seconds(
    tmp_path: Path, work: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "uvicorn.py").write_text("raise RuntimeError('of another release')\n")
    started = time.monotonic()
    with client(tmp_path / "home", work, PYTHONPATH=str(broken)) as process:
        out, _ = process.communicate(timeout=250)
    # a busy machine's; Prefect itself would wait for 180 seconds
    assert time.monotonic() - started < 100
    lines = out.splitlines()
    assert (
        lines[0] == "the temporary Prefect server does not start: RuntimeError: of another release"
    )
    assert lines[1] == f"  where: {tmp_path}/home/server.log"
    assert lines[2].startswith("  fix:   ")
    assert len(lines) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupt_from_the_terminal_ends_the_command_and_not_the_server_under_it(
    tmp_path: Path, work: Path
) -> None:
    with client(tmp_path / "home", work, "wait", start_new_session=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert "KeyboardInterrupt" in err
    assert "Prefect server has ended" not in err
    assert not answers(url)
