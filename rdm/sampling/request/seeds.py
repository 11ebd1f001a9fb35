"""Seeds of a request: `0-7`, `3,5,9`, or both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rdm.errors import UsageError

MAX_SEED = 2**63 - 1
_MAX_PICTURES = 10_000_000


def parse_seeds(text: str) -> Sequence[int]:
    """Return seeds from `0-7`, `3,5,9` or a mixture.

    Raises:
        UsageError: the text is neither, a seed is out of range, or there are too many.
    """
    ranges: list[range] = []
    try:
        for piece in text.split(","):
            first, _, last = piece.partition("-")
            ranges.append(range(int(first), int(last or first) + 1))
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no list of seeds", where="--seeds", fix="write 0-7 or 3,5,9"
        ) from error

    if not all(ranges):
        raise UsageError(
            f"{text!r}: a range of seeds is empty", where="--seeds", fix="write 0-7 or 3,5,9"
        )

    # Checked by the ends of ranges: a list of 10^18 seeds is never made.
    if max(piece[-1] for piece in ranges) > MAX_SEED or sum(map(len, ranges)) > _MAX_PICTURES:
        raise UsageError(
            f"{text!r}: seeds go up to 2^63 - 1, and {_MAX_PICTURES:,} at once",
            where="--seeds",
            fix="write 0-7 or 3,5,9",
        )
    return ranges[0] if len(ranges) == 1 else [seed for piece in ranges for seed in piece]


def format_seeds(seeds: Sequence[int]) -> str:
    """Return seeds as `parse_seeds` reads them, runs of consecutive ones as `FIRST-LAST`."""
    if not seeds:
        return ""
    breaks = [place for place, (a, b) in enumerate(pairwise(seeds), start=1) if b != a + 1]
    runs = [seeds[a:b] for a, b in pairwise([0, *breaks, len(seeds)])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def seeds_text(value: Any) -> Any:
    """Return seeds as text where they are a list of numbers, as JSON may have them."""
    if isinstance(value, (list, tuple, range)) and all(type(seed) is int for seed in value):
        return format_seeds(value)
    return value


def checked_seeds(text: str) -> str:
    """Return the text; raise ValueError, which names the field, where it is no list of seeds."""
    try:
        parse_seeds(text)
    except UsageError as error:
        raise ValueError(f"{error.what}; {error.fix}") from error
    return text
