"""The drawers of a server: started, sent tasks, and started again when they die."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

from rdm.serving.drawing.messages import (
    CancelTask,
    DrawerReady,
    Drawn,
    DrawTask,
    FromDrawer,
    ModelReady,
    StepDone,
    Stopped,
    ToDrawer,
)
from rdm.serving.drawing.process import run_drawer
from rdm.serving.settings import Named

logger = logging.getLogger(__name__)
_RESTART_SECONDS = 1.0


class DrawerEvents(Protocol):
    """Receives what drawers say, in the event loop."""

    def on_ready(self, drawer: Drawer, ready: DrawerReady) -> None:
        """A drawer can be sent tasks."""
        ...

    def on_step(self, drawer: Drawer, step: StepDone) -> None:
        """A step of its task is done."""
        ...

    def on_drawn(self, drawer: Drawer, drawn: Drawn) -> None:
        """Its task is done."""
        ...

    def on_stopped(self, drawer: Drawer, stopped: Stopped) -> None:
        """Its task was cancelled or failed."""
        ...

    def on_died(self, drawer: Drawer, task: DrawTask | None) -> None:
        """Its process ended; a task that it had in work is lost."""
        ...


@dataclass(eq=False)
class Drawer:
    """One drawer.

    Attributes:
        device: that it computes on.
        task: in work; None: it waits.
        is_ready: whether its models are loaded.
        restarts: how often it was started again.
        failure: what keeps it from starting.
    """

    device: str
    task: DrawTask | None = None
    is_ready: bool = False
    restarts: int = 0
    failure: Exception | None = None
    models: tuple[ModelReady, ...] = ()
    process: BaseProcess | None = None
    connection: Connection | None = None
    sending: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self.process.pid if self.process is not None else None

    @property
    def is_idle(self) -> bool:
        """Whether it can be sent a task."""
        return self.is_ready and self.task is None


class Drawers:
    """All drawers; what they say reaches `events` in the event loop that `start` is called in."""

    def __init__(self, models: Sequence[Named], devices: Sequence[str]) -> None:
        self.all = tuple(Drawer(device) for device in devices) if models else ()
        self._models = tuple(models)
        self._context = multiprocessing.get_context("spawn")
        self._is_closing = False

    def start(self, events: DrawerEvents) -> None:
        """Start every drawer."""
        self._loop = asyncio.get_running_loop()
        self._events = events
        for drawer in self.all:
            self._start(drawer)

    def _start(self, drawer: Drawer) -> None:
        ours, theirs = self._context.Pipe()
        drawer.connection = ours
        drawer.process = self._context.Process(
            target=run_drawer, args=(theirs, self._models, drawer.device), daemon=True
        )
        drawer.process.start()
        theirs.close()
        threading.Thread(
            target=self._listen, args=(drawer, ours), name=f"drawer-{drawer.device}", daemon=True
        ).start()

    def _listen(self, drawer: Drawer, connection: Connection) -> None:
        """Pass messages on until the process ends; runs in a thread."""
        try:
            while True:
                self._post(self._receive, drawer, connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:
            # A killed process may leave half a message.
            logger.exception("a drawer's message cannot be read")
        self._post(self._ended, drawer, connection)

    def _post(self, function: object, *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)  # type: ignore[arg-type]

    def _receive(self, drawer: Drawer, message: FromDrawer) -> None:
        # What a drawer says of itself.
        if isinstance(message, DrawerReady):
            drawer.is_ready, drawer.failure, drawer.models = True, None, message.models
            self._events.on_ready(drawer, message)
            return
        if isinstance(message, Stopped) and message.number < 0:
            drawer.failure = message.error
            return

        # What it says of a task, unless that was given up meanwhile.
        if drawer.task is None or message.number != drawer.task.number:
            return

        if isinstance(message, StepDone):
            self._events.on_step(drawer, message)
        elif isinstance(message, Drawn):
            drawer.task = None
            self._events.on_drawn(drawer, message)
        else:
            drawer.task = None
            self._events.on_stopped(drawer, message)

    def _ended(self, drawer: Drawer, connection: Connection) -> None:
        # A connection that was replaced already ends too, and means nothing.
        if self._is_closing or drawer.connection is not connection:
            return
        connection.close()
        if drawer.process is not None:
            drawer.process.kill()
            drawer.process.join(timeout=5)

        # The task goes back to the queue, which decides whether it is drawn again.
        task, drawer.task, drawer.is_ready = drawer.task, None, False
        drawer.restarts += 1
        logger.warning("the drawer of %s ended; it is started again", drawer.device)
        self._events.on_died(drawer, task)

        # One that could not load its models would fail the same way again.
        if drawer.models or drawer.failure is None:
            self._loop.call_later(_RESTART_SECONDS, self._restart, drawer)

    def _restart(self, drawer: Drawer) -> None:
        if not self._is_closing:
            self._start(drawer)

    def send(self, drawer: Drawer, task: DrawTask) -> None:
        """Give an idle drawer a task."""
        drawer.task = task
        self._send(drawer, task)

    def cancel(self, drawer: Drawer) -> None:
        """Stop the task in work after its step."""
        if drawer.task is not None:
            self._send(drawer, CancelTask(drawer.task.number))

    def _send(self, drawer: Drawer, message: ToDrawer) -> None:
        try:
            if drawer.connection is not None:
                drawer.connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError):
            logger.warning("the drawer of %s does not listen", drawer.device)

    def close(self) -> None:
        """End every process."""
        self._is_closing = True
        for drawer in self.all:
            self._send(drawer, None)
        for drawer in self.all:
            if drawer.process is not None and drawer.process.pid != os.getpid():
                drawer.process.join(timeout=2)
                if drawer.process.is_alive():
                    drawer.process.kill()
                    drawer.process.join(timeout=5)


def devices_of(requested: str) -> list[str]:
    """Return the devices of a server: every visible GPU, or the CPU."""
    from rdm.compute.device import compute_device

    first = compute_device(requested)  # type: ignore[arg-type]
    if first.type != "cuda":
        return [str(first)]
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
