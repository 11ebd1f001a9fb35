"""Causes for which a photograph cannot be used, and which of them may be gone the next time."""

from __future__ import annotations

# A file at hand that cannot be read, for lack of permission or by a fault of its disk.
CANNOT_BE_READ = "cannot be read"
PASSING_CAUSES = frozenset(
    {
        "too many requests",
        "server error",
        "timed out",
        "cut short",
        "no connection",
        "host not reached",
        "no result",
        CANNOT_BE_READ,
    }
)
"""Causes that may be gone the next time: worth another attempt. A missing picture never is."""


def cause_of(message: str) -> str:
    """Return the countable cause of an error message `cause: detail`."""
    return message.partition(":")[0]


def is_passing(message: str) -> bool:
    """Return whether the cause of an error message may be gone the next time."""
    return cause_of(message) in PASSING_CAUSES
