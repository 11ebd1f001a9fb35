"""A drawer: a process that holds networks and first stages, and draws what it is sent."""

from __future__ import annotations

import io
import logging
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rdm.errors import RdmError
from rdm.generators.conditions import Known
from rdm.generators.model_folder import Model, open_model
from rdm.generators.sample_settings import DrawStep, SampleSettings
from rdm.models.assets import public_name
from rdm.models.unet import num_parameters
from rdm.sampling.drawing.draw import draw
from rdm.sampling.recipe.record import ModelReference
from rdm.sampling.recorder import software_on
from rdm.serving.drawing.messages import (
    CancelTask,
    DrawerReady,
    Drawn,
    DrawTask,
    ModelReady,
    StepDone,
    Stopped,
)
from rdm.serving.settings import Named

logger = logging.getLogger(__name__)
_PREVIEW_SECONDS = 0.3
_PREVIEW_SHARE = 0.2  # of the drawing time that previews may take
_PREVIEW_SIDE = 128


class _CancelledError(Exception):
    """The task in work was cancelled."""


class _OwnerGoneError(Exception):
    """The server's process has ended."""


def run_drawer(connection: Connection, named: Sequence[Named], device: str) -> None:
    """Load models, say so, and draw until the server closes the connection.

    Args:
        connection: to the server.
        named: models to load.
        device: what they compute on.
    """
    # The server decides when a drawer ends: a signal to the whole group must not lose a picture.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s drawer %(message)s")

    try:
        models = {one.name: open_model(one.place, device) for one in named}
        ready = tuple(_ready(name, model) for name, model in models.items())
        seconds = [_warm_up(model) for model in models.values()]
        connection.send(DrawerReady(max(seconds, default=0.05), ready))

        while True:
            message = connection.recv()
            if message is None:
                return
            if isinstance(message, DrawTask):
                connection.send(_draw(connection, models[message.model], message))
    except (EOFError, BrokenPipeError, ConnectionResetError, _OwnerGoneError):
        return
    except RdmError as error:
        connection.send(Stopped(-1, error))


def _ready(name: str, model: Model) -> ModelReady:
    reference = ModelReference(
        name=public_name(model.directory),
        digest=model.digest,
        parameters=num_parameters(model.generator.network),
    )
    return ModelReady(name, reference, software_on(model.device))


@torch.no_grad()
def _warm_up(model: Model) -> float:
    """Draw twice, and return the seconds that a step of one picture took the second time."""
    settings = SampleSettings(num_steps=2, eta=0)
    for _ in range(2):
        started = time.perf_counter()
        model.draw(model.generator.context([_null(model)]), [0], settings)
        seconds = time.perf_counter() - started
    return seconds / 2


def _null(model: Model) -> Known:
    config = model.config.network
    dim = config.cross_attention_dim
    tokens = torch.zeros(1, dim) if model.reads_neighbors and dim else None
    return Known(neighbors=tokens, text="" if model.reads_text else None)


def _draw(connection: Connection, model: Model, task: DrawTask) -> Drawn | Stopped:
    """Draw a task; a cancellation is seen after each step."""
    # Everything that can stop a task is an answer: the drawer itself goes on.
    started = time.perf_counter()
    reporter = _Reporter(connection, task)
    try:
        pixels = draw(model, task.asked, task.settings, reporter)
    except _CancelledError:
        return Stopped(task.number)
    except RdmError as error:
        return Stopped(task.number, error)
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return Stopped(task.number, MemoryError(str(error)))

    return Drawn(
        task.number, pixels, time.perf_counter() - started, dict(model.acting(task.settings))
    )


class _Reporter:
    """Sends each step of a task, with pictures now and then, and raises when it is cancelled."""

    def __init__(self, connection: Connection, task: DrawTask) -> None:
        self._connection = connection
        self._task = task
        self._next_preview = time.perf_counter() + _PREVIEW_SECONDS / 2

    def __call__(self, step: DrawStep) -> None:
        # A task is cancelled between steps: what the server sent since the last one.
        while self._connection.poll():
            try:
                message = self._connection.recv()
            except (EOFError, ConnectionResetError) as error:
                raise _OwnerGoneError from error
            if message is None:
                raise _OwnerGoneError
            if isinstance(message, CancelTask) and message.number == self._task.number:
                raise _CancelledError

        # Previews are paced so that making them takes a bounded share of the time.
        previews: tuple[bytes, ...] = ()
        now = time.perf_counter()
        if self._task.previews and now >= self._next_preview and step.index < step.total:
            previews = tuple(webp(pixels, quality=70) for pixels in step.preview())
            cost = time.perf_counter() - now
            self._next_preview = now + max(_PREVIEW_SECONDS, cost / _PREVIEW_SHARE)

        self._connection.send(StepDone(self._task.number, step.index, step.total, previews))


def webp(pixels: NDArray[np.uint8], *, quality: int) -> bytes:
    """Return a picture uint8 [H, W, 3] as a WebP file of at most 128 pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()
