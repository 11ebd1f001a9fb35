"""A Prefect server for one command: in surroundings of its own, and ended with whoever started it.

`python -m flows.server PORT` is the server's process. It reads standard input, and ends when that
is closed: with the command, however the command ends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from rdm.errors import RdmError
from rdm.storage.files import storage_errors

LOG = "server.log"
START_SECONDS = 180.0  # a busy machine takes 30
POLL_SECONDS = 0.1

SETTINGS = {
    # in the working directory
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "rdm",
    "PREFECT_CLI_COLORS": "false",
    "DO_NOT_TRACK": "1",
    # Nothing but this machine is asked, whatever proxy the system has.
    "NO_PROXY": "*",
    "no_proxy": "*",
}
_TLS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")  # clients open them for http too


def own_environment(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return an environment without a user's Prefect settings, servers and proxies.

    Settings that Prefect reads from files of the working directory (`.env`, `prefect.toml`,
    `pyproject.toml`) stay away in another working directory only.

    Args:
        environment: the user's.
        home: absolute folder for Prefect's own files.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not name.upper().startswith("PREFECT_")
        and not name.lower().endswith("_proxy")
        and name not in _TLS
    }
    places = {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}
    return {**kept, **SETTINGS, **places}


@contextmanager
def own_server(home: Path) -> Iterator[str]:
    """Run a Prefect server, and make this process its client; call it before Prefect is imported.
    Yield its address.

    Environment and working directory are this process's own meanwhile, and as they were afterwards.

    Args:
        home: absolute folder for the server's files; it is emptied.

    Raises:
        StorageError: the folder cannot be written.
        RdmError: the server ended, or does not answer.
    """
    # Prefect's settings are environment variables: the caller's come back afterwards.
    before = dict(os.environ)

    with storage_errors(home):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)

    with chdir(home):
        try:
            _replace_environment(own_environment(before, home))
            with _running(home) as url:
                os.environ["PREFECT_API_URL"] = url
                yield url
        finally:
            _replace_environment(before)


def _replace_environment(environment: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


@contextmanager
def _running(home: Path) -> Iterator[str]:
    with open(home / LOG, "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
            # Ctrl-C is for the command, which needs the server until it has ended
            start_new_session=True,
        )

        # The server ends when its standard input does, so it never outlives this process.
        assert server.stdin is not None
        assert server.stdout is not None

        try:
            # The server chooses the port and holds it: one chosen here could be taken.
            port = server.stdout.readline().decode().strip()
            url = f"http://127.0.0.1:{port}/api"
            _wait(server, url, home / LOG)
            yield url
        except Exception as error:
            if server.poll() is None or isinstance(error, RdmError):
                raise
            raise _failure("has ended", home / LOG) from error
        finally:
            with suppress(BrokenPipeError):
                server.stdin.close()
            server.stdout.close()
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server answers."""
    # No proxy, whatever the environment says: the server listens on the loopback only.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise _failure("does not start", log)
        # URLError is an OSError
        with suppress(OSError), opener.open(f"{url}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(POLL_SECONDS)
    raise _failure(f"does not answer within {START_SECONDS:.0f} seconds", log)


def _failure(what: str, log: Path) -> RdmError:
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]

    cause = next(
        (line for line in reversed(lines) if "Error" in line),
        lines[-1] if lines else "it said nothing",
    )
    return RdmError(
        f"the temporary Prefect server {what}: {cause[:300]}",
        where=log,
        fix="see `rdm doctor`, mend the cause, and run the same command again: what is "
        "complete is kept",
    )


def main() -> None:
    """Serve Prefect's API on a free loopback port, and print the port."""
    import uvicorn

    # Standard input closes when the owner ends, however it ends: no server is left behind.
    def end_with_owner() -> None:
        while os.read(0, 1):
            pass
        os._exit(0)

    threading.Thread(target=end_with_owner, daemon=True).start()

    # The socket is bound here, so that no other process can take the port in between.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(
            "prefect.server.api.server:create_app",
            factory=True,
            log_level="error",
            lifespan="on",
            workers=1,
        )
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
