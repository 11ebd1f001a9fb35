"""Jobs and their pictures: what is stored, what clients are told."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

from rdm.config import Record
from rdm.sampling.recipe.record import Credit
from rdm.serving.jobs.events import EventRing
from rdm.serving.lookup import DatabaseVersion, Found
from rdm.serving.problems import Problem
from rdm.serving.request import JobRequest

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """Return an opaque id; later ones sort behind earlier ones, to the millisecond."""
    number, letters = (time.time_ns() // 1_000_000 << 40) | secrets.randbits(40), ""
    for _ in range(17):
        number, digit = divmod(number, 32)
        letters = _ALPHABET[digit] + letters
    return f"{prefix}_{letters}"


class Picture(Record):
    """A finished picture of a job."""

    id: str
    index: int
    seed: int
    url: str
    thumb: str
    recipe: str
    credits: str


class Timings(Record):
    """Seconds that the parts of a job took."""

    queued: float = 0.0
    looked_up: float = 0.0
    drawn: float = 0.0


class JobView(Record):
    """A job as clients see it."""

    id: str
    state: State
    created: float
    position: int
    seconds_left: float
    request: JobRequest
    databases: tuple[DatabaseVersion, ...]
    neighbors: tuple[Credit, ...]
    images: tuple[Picture, ...]
    problem: Problem | None
    timings: Timings
    events: str


@dataclass(eq=False)
class Job:
    """A job in work.

    Attributes:
        id: of the job.
        client: whose turn in the queue it takes.
        request: with every default filled in.
        created: seconds since the epoch.
        state: where it stands.
        found: its look-up; None before it.
        databases: that it was looked up in.
        neighbors: those that condition; of a job that ended they are all that is left of `found`.
        images: finished pictures by index.
        problem: why it failed.
        ring: its events.
    """

    id: str
    client: str
    request: JobRequest
    created: float = field(default_factory=time.time)
    state: State = "queued"
    found: Found | None = None
    databases: tuple[DatabaseVersion, ...] = ()
    neighbors: tuple[Credit, ...] = ()
    images: dict[int, Picture] = field(default_factory=dict)
    problem: Problem | None = None
    timings: Timings = Timings()
    ring: EventRing = field(default_factory=EventRing)

    @property
    def has_ended(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in ENDED

    @property
    def num_left(self) -> int:
        """Pictures that are not drawn yet."""
        return 0 if self.has_ended else len(self.request.seed_list) - len(self.images)

    @property
    def steps_left(self) -> int:
        """Steps of single pictures that are not drawn yet."""
        return self.num_left * self.request.settings.num_steps


class StoredImage(Record):
    """A picture in the store: whose job, its seed, and its record as JSON."""

    id: str
    job: str
    index: int
    seed: int
    created: float
    label: str
    databases: tuple[DatabaseVersion, ...]
    request: JobRequest
    recipe: str
    is_draft: bool
    pixels_sha256: str


def picture_of(image: StoredImage) -> Picture:
    """Return a stored picture as clients see it; addresses are relative to the server's root."""
    base = f"v1/images/{image.id}"
    return Picture(
        id=image.id,
        index=image.index,
        seed=image.seed,
        url=f"{base}.png",
        thumb=f"{base}.webp?size=128",
        recipe=f"{base}/recipe",
        credits=f"{base}/credits",
    )
