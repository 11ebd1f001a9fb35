"""Messages between server and drawers: what conditions pictures, and pictures back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdm.generators.sample_settings import SampleSettings, Setting
from rdm.sampling.recipe.record import ModelReference, SoftwareVersions
from rdm.sampling.retrieval.conditioning import Conditioning


@dataclass(frozen=True)
class DrawTask:
    """Pictures to draw in one batch of a canonical shape: the settings' `batch_size`.

    Attributes:
        number: of the task.
        model: the name that requests say.
        asked: what conditions each picture, at most as many as the shape has rows.
        settings: of all.
        previews: whether pictures are wanted on the way.
    """

    number: int
    model: str
    asked: tuple[Conditioning, ...]
    settings: SampleSettings
    previews: bool


@dataclass(frozen=True)
class CancelTask:
    """Stop a task between two steps."""

    number: int


@dataclass(frozen=True)
class ModelReady:
    """A model is loaded and has drawn once.

    Attributes:
        name: that requests say.
        reference: what recipes say of it.
        software: that draws.
    """

    name: str
    reference: ModelReference
    software: SoftwareVersions


@dataclass(frozen=True)
class DrawerReady:
    """Every model is loaded.

    Attributes:
        seconds_per_step: of one picture, measured.
        models: what was loaded.
    """

    seconds_per_step: float
    models: tuple[ModelReady, ...]


@dataclass(frozen=True)
class StepDone:
    """A step of a task; `previews` are WebP files of the batch's pictures, where there are some."""

    number: int
    index: int
    total: int
    previews: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A finished task: pictures uint8 [B, H, W, 3], and the settings that acted."""

    number: int
    pixels: NDArray[np.uint8]
    seconds: float
    acting: dict[str, Setting]


@dataclass(frozen=True)
class Stopped:
    """A task that was cancelled, or that failed with an error."""

    number: int
    error: Exception | None = None


ToDrawer = DrawTask | CancelTask | None
"""None: end."""
FromDrawer = DrawerReady | StepDone | Drawn | Stopped
