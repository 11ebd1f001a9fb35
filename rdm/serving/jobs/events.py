"""Events of jobs and browser sessions: a bounded ring that any number of readers follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

_CAPACITY = 512
TERMINAL = frozenset({"job.done", "job.failed", "job.cancelled"})
PREVIEW = "image.preview"


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        number: 1, 2, ... in its ring.
        name: such as `image.done`.
        data: as JSON.
        key: of a preview, what a later one takes the place of.
    """

    number: int
    name: str
    data: str
    key: str = ""


class EventRing:
    """The last events, for readers that come late or were cut off."""

    def __init__(self, first: int = 1) -> None:
        self._events: deque[Event] = deque(maxlen=_CAPACITY)
        self._next = first
        self._changed = asyncio.Event()
        self.num_readers = 0

    @property
    def last(self) -> int:
        """The number of the newest event; 0 before the first."""
        return self._next - 1

    def add(self, name: str, data: str, key: str = "") -> None:
        """Append an event and wake every reader."""
        self._events.append(Event(self._next, name, data, key))
        self._next += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def has_after(self, number: int) -> bool:
        """Return whether every event after a number is still here."""
        oldest = self._events[0].number if self._events else self._next
        return oldest - 1 <= number <= self.last

    def after(self, number: int) -> list[Event]:
        """Return the events after a number; of previews the newest of each picture alone, so that
        a slow reader skips some instead of falling behind."""
        found = [event for event in self._events if event.number > number]
        newest = {event.key: event.number for event in found if event.name == PREVIEW}
        return [
            event for event in found if event.name != PREVIEW or newest[event.key] == event.number
        ]

    async def follow(self, number: int) -> AsyncIterator[Event]:
        """Yield events after a number as they come, without end."""
        self.num_readers += 1
        try:
            while True:
                changed = self._changed
                events, number = self.after(number), self.last
                for event in events:
                    yield event
                # Set already where something came while these were sent.
                await changed.wait()
        finally:
            self.num_readers -= 1
