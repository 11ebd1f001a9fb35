"""What a finished quickstart leaves in `quickstart.json`."""

from __future__ import annotations

from rdm.config import Record
from rdm.evaluation.heldout import HeldOutLosses
from rdm.evaluation.metrics.fid import Metric


class QuickstartResult(Record):
    """What a quickstart took, and what was measured."""

    key: str
    """Changes with its settings: a finished quickstart of others is run again."""
    seconds: float
    held_out: HeldOutLosses | None
    metrics: list[Metric]
