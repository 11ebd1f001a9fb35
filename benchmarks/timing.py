"""Paired timing: two functions in turn, so that a machine whose speed drifts slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def paired_ratio(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Return the median ratio of times theirs / ours over rounds, and the median seconds of each,
    after a warm-up.

    Args:
        ours: one function.
        theirs: the other.
        rounds: each with both.
        clock: seconds; `time.process_time` where others use the machine too.
    """
    ours()
    theirs()
    pairs = [(_seconds(ours, clock), _seconds(theirs, clock)) for _ in range(rounds)]
    return (
        statistics.median(b / a for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def _seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    function()
    return clock() - started
