"""The server's process: it starts everything, listens, and drains when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import Callable, Iterator

import uvicorn

from rdm.config import parse_bytes
from rdm.errors import RdmError, StorageError
from rdm.serving.databases import Databases
from rdm.serving.drawing.drawers import Drawers, devices_of
from rdm.serving.http.app import build_app
from rdm.serving.http.context import Serving
from rdm.serving.jobs.look_ups import LookUps
from rdm.serving.jobs.service import JobService
from rdm.serving.jobs.store import JobStore
from rdm.serving.metrics import Metrics
from rdm.serving.models import Models
from rdm.serving.settings import ServeSettings
from rdm.serving.uploads import Uploads

logger = logging.getLogger(__name__)
DRAIN_SECONDS = 30.0
_POLL_SECONDS = 0.5
_SWEEP_SECONDS = 600.0


class _Server(uvicorn.Server):
    """A server whose signals are handled by `serve`: jobs are drained before it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: ServeSettings, on_listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: of the server.
        on_listening: is told the address once, when connections are accepted.

    Raises:
        RdmError: a model, a database or the folder cannot be opened, or the port is taken.
    """
    models = Models(settings.models)
    store = JobStore(settings.data)
    try:
        asyncio.run(_serve(settings, models, store, on_listening))
    finally:
        store.close()


async def _serve(
    settings: ServeSettings,
    models: Models,
    store: JobStore,
    on_listening: Callable[[str], None],
) -> None:
    # What the server is made of.
    metrics, databases = Metrics(), Databases(settings.databases, settings.device)
    drawers = Drawers(settings.models, devices_of(settings.device))
    uploads = Uploads(settings.data / "uploads")
    lookups = LookUps(models, databases, uploads, settings.limits, metrics)
    service = JobService(lookups, drawers, store, settings.limits, metrics)
    serving = Serving(settings, service, models, databases, metrics, secrets.token_hex(4))

    # One port, no headers of proxies believed, and no names of software told.
    config = uvicorn.Config(
        build_app(serving),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=64 * 1024,
        lifespan="off",
        loop="asyncio",
    )
    server = _Server(config)
    ended = _on_signals()

    # The server listens at once: databases open and drawers start while it answers.
    drawers.start(service.dispatch)
    listening = asyncio.create_task(_listen(server, settings))
    work = [
        asyncio.create_task(_open(serving, server, on_listening)),
        asyncio.create_task(_end(serving, server, ended)),
        asyncio.create_task(_fail(serving, server)),
    ]

    try:
        await listening
    finally:
        for task in work:
            task.cancel()
        service.close()
        drawers.close()

    # What ended the server is told after everything is closed.
    if serving.failure is not None:
        raise serving.failure


async def _listen(server: _Server, settings: ServeSettings) -> None:
    """Accept connections until the server is to exit."""
    try:
        await server.serve()
    except SystemExit as error:
        raise StorageError(
            f"port {settings.port} of {settings.host} cannot be listened on",
            where="--port",
            fix="end what listens there, or give --port another number",
        ) from error


def _on_signals() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set; a second signal ends the process at once."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def told(number: int) -> None:
        if ended.is_set():
            raise SystemExit(128 + number)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told, number)
    return ended


async def _end(serving: Serving, server: _Server, ended: asyncio.Event) -> None:
    """Drain, then stop, when a signal comes."""
    await ended.wait()
    logger.info("shutting down: what is being drawn is finished, what waits is kept")
    await serving.service.drain(DRAIN_SECONDS)
    server.should_exit = True


async def _fail(serving: Serving, server: _Server) -> None:
    """Stop when a drawer cannot load its models."""
    await serving.service.failed.wait()
    serving.failure = serving.service.failure
    server.should_exit = True


async def _open(serving: Serving, server: _Server, on_listening: Callable[[str], None]) -> None:
    """Open the databases, take up what an earlier process left, then watch for new versions."""
    service, databases = serving.service, serving.databases
    while not server.started:
        await asyncio.sleep(0.02)

    # With --port 0 the socket alone knows which port it got.
    port = server.servers[0].sockets[0].getsockname()[1]
    host = f"[{serving.settings.host}]" if ":" in serving.settings.host else serving.settings.host
    on_listening(f"http://{host}:{port}/")

    try:
        await asyncio.to_thread(databases.open_all)
    except Exception as error:
        serving.failure = error
        server.should_exit = True
        return

    for one in databases.all:
        serving.metrics.database_version.labels(one.name).set(one.version)

    # Jobs of an earlier process need the databases, so they go on only now.
    if count := service.resume():
        logger.info("%d jobs of an earlier run go on", count)
    await asyncio.gather(_watch(serving), _sweep(serving))


async def _watch(serving: Serving) -> None:
    """Swap databases that have a new version."""
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        for change in await asyncio.to_thread(serving.databases.poll):
            logger.info("%s is at version %d", change.name, change.version)
            serving.service.on_changed(change)


async def _sweep(serving: Serving) -> None:
    """Delete pictures and uploads that are kept no longer."""
    limits = serving.settings.limits
    while True:
        try:
            await asyncio.to_thread(
                serving.service.store.sweep,
                limits.keep_days * 86400,
                parse_bytes(limits.keep_bytes),
            )
            await asyncio.to_thread(serving.service.lookups.uploads.sweep)
        except (RdmError, OSError):
            logger.exception("old pictures could not be deleted")
        await asyncio.sleep(_SWEEP_SECONDS)
