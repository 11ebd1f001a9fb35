"""Rings of events: readers that come late, fall behind, or were cut off."""

from __future__ import annotations

import asyncio

from rdm.serving.jobs.events import EventRing


def names(ring: EventRing, after: int) -> list[str]:
    return [event.name for event in ring.after(after)]


def test_a_reader_gets_what_came_after_a_number() -> None:
    ring = EventRing()
    for name in "abc":
        ring.add(name, "{}")
    assert names(ring, 0) == ["a", "b", "c"]
    assert names(ring, 2) == ["c"]
    assert ring.last == 3


def test_of_previews_a_late_reader_gets_the_newest_of_each_picture() -> None:
    ring = EventRing()
    for step in range(3):
        for picture in ("0", "1"):
            ring.add("image.preview", f"{picture}{step}", picture)
    ring.add("job.done", "{}")
    assert [event.data for event in ring.after(0)] == ["02", "12", "{}"]


def test_memory_is_bounded_and_a_gap_is_seen() -> None:
    ring = EventRing()
    for number in range(1000):
        ring.add("x", str(number))
    assert len(ring.after(0)) == 512
    assert not ring.has_after(0)
    assert ring.has_after(488)
    assert not ring.has_after(1001)


def test_a_follower_sees_each_event_once_while_others_are_added() -> None:
    async def follow() -> list[int]:
        ring, seen = EventRing(), []

        async def read() -> None:
            async for event in ring.follow(0):
                seen.append(event.number)
                if event.number % 3 == 0:
                    await asyncio.sleep(0)
                if event.name == "end":
                    return

        reader = asyncio.create_task(read())
        for _ in range(50):
            ring.add("x", "{}")
            await asyncio.sleep(0)
        ring.add("end", "{}")
        await asyncio.wait_for(reader, 5)
        return seen

    assert asyncio.run(follow()) == list(range(1, 52))


def test_a_reader_that_leaves_is_not_counted() -> None:
    async def leave() -> tuple[int, int]:
        ring = EventRing()
        ring.add("x", "{}")
        reading = ring.follow(0)
        await anext(reading)
        during = ring.num_readers
        await reading.aclose()  # type: ignore[attr-defined]
        return during, ring.num_readers

    assert asyncio.run(leave()) == (1, 0)
