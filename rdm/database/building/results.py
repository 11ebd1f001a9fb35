"""Results that people read: of a plan, of each stage, of a whole build, and of an estimate."""

from __future__ import annotations

from rdm.config import Record, absent
from rdm.database.building.patch_sizes import PatchSizes
from rdm.database.facts import VersionFacts
from rdm.database.neighbors.update import TableRepair


class PlanFacts(Record):
    """The size of a run: photographs of the source, new ones, those that go, their patches."""

    changed: bool
    photographs: int
    new: int
    gone: int
    gone_patches: int
    delisted: int | None = absent()
    """Photographs that the source's list has no more, where there are any."""
    first_delisted: list[str] | None = absent()


class IngestFacts(Record):
    """Counts of the requested photographs; `causes` has the usable ones under `success`."""

    count: int
    successes: int
    failed: int
    causes: dict[str, int]


class PatchFacts(Record):
    """Counts of the patches that were cut from the new photographs."""

    num_patches: int
    num_images: int
    dropped: dict[str, int]
    """Patches that filters left out, by cause."""
    near_duplicates: int
    """Photographs that are left out because they resemble another one."""
    patch_pixels: PatchSizes | None


class EmbedFacts(Record):
    """The number of embedded patches."""

    num_patches: int


class RepairFacts(Record):
    """The repairs of the neighbor tables, by query set."""

    query_sets: dict[str, TableRepair]


class BuildResult(VersionFacts):
    """The version that a build or an update made, or left as it was (`unchanged`)."""

    failed: int
    causes: dict[str, int] = {}
    """Of the requested photographs."""
    patch_pixels: PatchSizes | None = absent()
    """Of the new patches."""
    query_sets: dict[str, TableRepair] = {}
    device: str | None = absent()
    """The device that embedded the new patches."""
    unchanged: bool


class Estimate(Record):
    """The cost of a run, scaled from a trial; `trial_failed` says why nothing more is known."""

    trial_photographs: int
    trial_failed: str | None = absent()
    patches: int | None = absent()
    patch_pixels: PatchSizes | None = absent()
    num_bytes: int | None
    seconds: dict[str, float] | None = absent()
    """By stage."""
    hours: float | None
    workers: int | None = absent()
    worker_memory_bytes: int | None = absent()
    cost: float | None
