"""The queue: who may enter, and whose pictures are drawn next."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.retrieval.conditioning import Conditioning
from rdm.serving.jobs.records import Job
from rdm.serving.problems import ServeError
from rdm.serving.settings import Limits

CPU_SHAPES = (1, 2, 4)
GPU_SHAPES = (1, 4, 16)


@dataclass(eq=False)
class Row:
    """One picture to draw: a row of a batch.

    Attributes:
        job: whose it is.
        index: of the picture in its job.
        shape: rows of the batch that it is drawn in, whoever the others are: kernels depend on it,
            so that a picture has the same bits alone and in company.
        attempts: how often it was sent to a drawer.
    """

    job: Job
    index: int
    shape: int
    attempts: int = 0

    @property
    def seed(self) -> int:
        """Of the picture."""
        return self.job.request.seed_list[self.index]

    @property
    def settings(self) -> SampleSettings:
        """Of the batch."""
        settings = self.job.request.settings.model_dump()
        return SampleSettings(**{**settings, "batch_size": self.shape})

    @property
    def asked(self) -> Conditioning:
        """What conditions the picture."""
        assert self.job.found is not None
        return self.job.found.asked[self.index]

    def key(self) -> tuple[object, ...]:
        """Return what rows of one batch have in common."""
        asked = self.asked
        tokens = None if asked.tokens is None else asked.tokens.values.shape
        negative = asked.negative and (
            asked.negative.scale,
            asked.negative.tokens and asked.negative.tokens.values.shape,
        )
        return (self.job.request.model, self.settings, tokens, negative, self.shape)


def shape_of(num_pictures: int, shapes: tuple[int, ...]) -> int:
    """Return the smallest canonical batch that holds so many pictures, at most the largest."""
    return next((shape for shape in shapes if shape >= num_pictures), shapes[-1])


class FairQueue:
    """Rows that wait: clients take turns, a client's drafts go before its other jobs.

    At most every second batch is a draft's where other rows wait.
    """

    def __init__(self) -> None:
        self._rows: OrderedDict[str, deque[Row]] = OrderedDict()
        self._last_was_draft = False

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order of their clients' turns."""
        waiting = [list(rows) for rows in self._rows.values()]
        longest = max(map(len, waiting), default=0)
        return [rows[place] for place in range(longest) for rows in waiting if place < len(rows)]

    def add(self, rows: Iterable[Row], *, first: bool = False) -> None:
        """Let rows of one job wait.

        Args:
            rows: in order.
            first: before everything else of their clients, as after a drawer's death.
        """
        for row in reversed(list(rows)) if first else rows:
            waiting = self._rows.setdefault(row.job.client, deque())
            if first:
                waiting.appendleft(row)
            else:
                waiting.append(row)

    def remove(self, job: Job) -> int:
        """Take a job's rows out and return how many there were."""
        before = len(self)
        for client, waiting in tuple(self._rows.items()):
            self._keep(client, deque(row for row in waiting if row.job is not job))
        return before - len(self)

    def next_batch(self) -> list[Row]:
        """Take the rows that are drawn next: of one client's turn, filled with equal ones of
        others."""
        first = self._first()
        if first is None:
            return []
        client = first.job.client
        self._last_was_draft = first.job.request.supersede
        batch = [first]
        key = first.key()
        # The client whose turn it was goes to the end of the line.
        if client in self._rows:
            self._rows.move_to_end(client)
        order = [client, *(name for name in self._rows if name != client)]
        for name in order:
            for row in tuple(self._rows.get(name, ())):
                if len(batch) < first.shape and row is not first and row.key() == key:
                    batch.append(row)
        taken = set(map(id, batch))
        for name, waiting in tuple(self._rows.items()):
            self._keep(name, deque(row for row in waiting if id(row) not in taken))
        return batch

    def _first(self) -> Row | None:
        """Return the row whose turn it is, and leave it in its place."""
        if not self._rows:
            return None

        # Drafts and others take turns, so that neither holds up the other.
        if not self._last_was_draft:
            for waiting in self._rows.values():
                draft = next((row for row in waiting if row.job.request.supersede), None)
                if draft is not None:
                    return draft
        for waiting in self._rows.values():
            row = next((row for row in waiting if not row.job.request.supersede), None)
            if row is not None:
                return row

        return next(iter(self._rows.values()))[0]

    def _keep(self, client: str, waiting: deque[Row]) -> None:
        if waiting:
            self._rows[client] = waiting
        else:
            self._rows.pop(client, None)


def check_admission(
    request_steps: int, client: str, jobs: Iterable[Job], limits: Limits, seconds_per_step: float
) -> None:
    """Raise ServeError unless a job may enter, all of it or nothing.

    Args:
        request_steps: steps of all its pictures.
        client: who asks.
        jobs: that wait or draw, without those that it takes the place of.
        limits: of the server.
        seconds_per_step: of one picture, of all drawers together.
    """
    present = list(jobs)
    seconds = sum(job.steps_left for job in present) * seconds_per_step
    own = sum(job.client == client for job in present)

    # The limit of one client comes first: waiting for the others would not help it.
    if own >= limits.max_per_client:
        raise ServeError(
            "client_queue_full",
            f"{own} of your jobs wait or draw already",
            fix="wait for one of them, or cancel one",
            retry_after=max(1.0, seconds / max(1, own)),
        )

    if len(present) >= limits.max_queued:
        raise ServeError(
            "queue_full",
            f"{len(present)} jobs wait or draw already",
            fix="try again later",
            retry_after=max(1.0, seconds / 2),
        )

    # An empty queue takes any job, however long: it would never be shorter.
    wait = seconds + request_steps * seconds_per_step
    if present and wait > limits.max_wait:
        raise ServeError(
            "queue_full",
            f"the pictures would be done in about {wait:.0f} s, the limit is {limits.max_wait:.0f}",
            fix="ask for fewer pictures or steps, or try again later",
            retry_after=max(1.0, seconds),
        )
