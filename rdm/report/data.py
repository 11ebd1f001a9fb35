"""What a quickstart report shows: frozen dataclasses of plain Python values and numpy arrays.

Pictures are uint8 arrays [H, W, 3] in RGB, 0..255. Similarities are cosines, -1..1. An empty tuple
or None stands for "this run did not produce it"; the report then leaves the section out and says
so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rdm.database.facts import VersionFacts

Pixels = NDArray[np.uint8]
QueryKind = Literal["image", "text", "class", "unconditional"]


def check_pixels(pixels: Pixels) -> None:
    """Check that an array is a picture: uint8 [H, W, 3] with at least one pixel.

    Raises:
        ValueError: it is not.
    """
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[2] != 3
    ):
        found = (
            f"{pixels.dtype} {list(pixels.shape)}"
            if isinstance(pixels, np.ndarray)
            else type(pixels).__name__
        )
        raise ValueError(f"a picture is a uint8 array [H, W, 3], got {found}")

    if pixels.size == 0:
        raise ValueError(f"a picture has at least one pixel, got {list(pixels.shape)}")


LOSS_NAMES = {
    "eps": "mean squared error of the predicted noise",
    "v": "mean squared error of v",
    "x0": "mean squared error of the predicted latents",
    "tokens": "nats per token",
}
"""What each kind of loss is called on an axis."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% confidence interval, all three in the unit of the measured quantity."""

    mean: float
    low: float
    high: float


def recall_of(version: VersionFacts) -> Estimate:
    """Return the recall@20 of a version's index with its interval, which does not leave [0, 1]."""
    recall, half = version.recall_at_20, version.recall_ci95
    return Estimate(recall, max(0.0, recall - half), min(1.0, recall + half))


@dataclass(frozen=True)
class Stage:
    """One step of the run: wall-clock seconds, peak resident memory and what it produced; None
    where not measured."""

    name: str
    seconds: float
    meaning: str
    num_items: int | None = None
    item_name: str = "items"
    peak_memory_bytes: int | None = None
    bytes_written: int | None = None


@dataclass(frozen=True)
class Work:
    """One photograph as its source credits it; `url` is its landing page."""

    title: str
    url: str = ""


@dataclass(frozen=True)
class Credit:
    """A photographer and the photographs credited to them."""

    author: str
    url: str = ""
    works: tuple[Work, ...] = ()


@dataclass(frozen=True, eq=False)
class Photographs:
    """A strip of photographs from the database, and the credits of everything the source holds.

    `credits_linked` is False where the source lists its credits without saying which file is whose.
    """

    source: str
    license_name: str
    license_url: str
    pictures: tuple[Pixels, ...]
    credits: tuple[Credit, ...] = ()
    credits_linked: bool = False

    def __post_init__(self) -> None:
        for pixels in self.pictures:
            check_pixels(pixels)


@dataclass(frozen=True, eq=False)
class Query:
    """A query: a picture for `image`, words for `text` and `class`, neither for `unconditional`."""

    kind: QueryKind
    text: str = ""
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        if self.kind == "image" and self.pixels is None:
            raise ValueError("an image query needs pixels")
        if self.pixels is not None:
            check_pixels(self.pixels)


@dataclass(frozen=True, eq=False)
class Neighbor:
    """A patch of the database with its cosine similarity to the query, and its share in what the
    network expects (None: not measured)."""

    pixels: Pixels
    similarity: float
    patch_id: int
    influence: float | None = None

    def __post_init__(self) -> None:
        check_pixels(self.pixels)


@dataclass(frozen=True, eq=False)
class QueryNeighbors:
    """A query and its nearest patches, most similar first."""

    query: Query
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """A generated picture and the seed of its noise."""

    pixels: Pixels
    seed: int

    def __post_init__(self) -> None:
        check_pixels(self.pixels)


@dataclass(frozen=True, eq=False)
class Draw:
    """The neighbors that conditioned the network, and the samples made from exactly these."""

    neighbors: tuple[Neighbor, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, eq=False)
class SampleGroup:
    """One query and its draws.

    A text or image query usually has one draw with many samples; an unconditional one draws a
    pseudo-query per sample.
    """

    query: Query
    draws: tuple[Draw, ...]
    guidance_scale: float | None = None
    note: str = ""

    @property
    def num_samples(self) -> int:
        """The number of samples over all draws."""
        return sum(len(draw.samples) for draw in self.draws)


@dataclass(frozen=True)
class Training:
    """The training run: one loss per record at increasing steps, which start at 1 if `log_steps`.

    `start` is the model that the run went on from; None: random weights.
    """

    recipe: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    num_parameters: int
    batch_size: int
    seconds: float
    hardware: str
    conditioning_dropout: float
    start: str | None = None
    loss_name: str = LOSS_NAMES["eps"]
    held_out_steps: tuple[int, ...] = ()
    held_out_losses: tuple[float, ...] = ()
    log_steps: bool = False


@dataclass(frozen=True, eq=False)
class SwapRow:
    """One query drawn from both databases. Sample i of either draw has the same seed."""

    query: Query
    draw_a: Draw
    draw_b: Draw

    def __post_init__(self) -> None:
        seeds_a = [sample.seed for sample in self.draw_a.samples]
        seeds_b = [sample.seed for sample in self.draw_b.samples]
        if seeds_a != seeds_b:
            raise ValueError(
                f"a database swap compares the same seeds, got {seeds_a} and {seeds_b}"
            )


@dataclass(frozen=True)
class Statistic:
    """A measured quantity, its meaning, and the value that chance alone would give, if any."""

    name: str
    meaning: str
    estimate: Estimate
    chance: float | None = None


@dataclass(frozen=True, eq=False)
class DatabaseSwap:
    """The same seeds and queries, with two databases that share no photograph."""

    name_a: str
    name_b: str
    description: str
    rows: tuple[SwapRow, ...]
    statistics: tuple[Statistic, ...] = ()


@dataclass(frozen=True)
class Condition:
    """The held-out loss under one kind of context."""

    name: str
    meaning: str
    loss: Estimate


@dataclass(frozen=True)
class Difference:
    """A paired difference of two conditions, taken per picture before averaging."""

    name: str
    estimate: Estimate


@dataclass(frozen=True)
class HeldOutLoss:
    """Diffusion loss on held-out pictures, paired over pictures, noise and times."""

    conditions: tuple[Condition, ...]
    differences: tuple[Difference, ...]
    num_pictures: int
    num_draws: int
    conditioning_dropout: float
    protocol: str = ""
    loss_name: str = LOSS_NAMES["eps"]


@dataclass(frozen=True)
class Metric:
    """A number that only means something with its protocol."""

    name: str
    value: float
    feature_network: str
    num_samples: int
    reference: str
    resize: str
    interval: Estimate | None = None
    lower_is_better: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Command:
    """A command line to type, and what it does."""

    line: str
    meaning: str = ""


@dataclass(frozen=True)
class Reproduction:
    """Everything needed to run it again. `config` is any JSON-serializable mapping."""

    commands: tuple[Command, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class QuickstartReport:
    """The whole report.

    `created` is a date in words, `similarities` are those of every held-out query's neighbors, and
    `samples_note` says how the samples shown were chosen.
    """

    title: str = "Retrieval-augmented diffusion"
    created: str = ""
    stages: tuple[Stage, ...] = ()
    database: VersionFacts | None = None
    photographs: Photographs | None = None
    queries: tuple[QueryNeighbors, ...] = ()
    similarities: tuple[float, ...] = ()
    training: Training | None = None
    samples: tuple[SampleGroup, ...] = ()
    samples_note: str = ""
    swap: DatabaseSwap | None = None
    held_out: HeldOutLoss | None = None
    metrics: tuple[Metric, ...] = ()
    reproduction: Reproduction | None = None
    limits: tuple[str, ...] = ()
