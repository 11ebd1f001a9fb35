"""What builds and updates tell: what is planned, what each stage did, what came of it, what it
would take."""

from __future__ import annotations

from rdm.config import Record, absent
from rdm.database.building.patch_sizes import PatchSizes
from rdm.database.facts import VersionFacts
from rdm.database.neighbors.update import TableRepair


class PlanFacts(Record):
    """What a run would do: photographs in the source, new ones, those that go, and their
    patches."""

    changed: bool
    photographs: int
    new: int
    gone: int
    gone_patches: int
    delisted: int | None = absent()
    """Photographs that the source's list has no more, where there are any."""
    first_delisted: list[str] | None = absent()


class IngestFacts(Record):
    """What became of the photographs that were asked for; `causes` counts what is stored as
    `success`."""

    count: int
    successes: int
    failed: int
    causes: dict[str, int]


class PatchFacts(Record):
    """What was cut of the new photographs."""

    num_patches: int
    num_images: int
    dropped: dict[str, int]
    """Patches that filters left out, by cause."""
    near_duplicates: int
    """Photographs that are left out because they resemble another one."""
    patch_pixels: PatchSizes | None


class EmbedFacts(Record):
    """What was embedded."""

    num_patches: int


class RepairFacts(Record):
    """What the repair of the neighbors did, by query set."""

    query_sets: dict[str, TableRepair]


class BuildResult(VersionFacts):
    """The version that a build or an update made, or found made (`unchanged`)."""

    failed: int
    causes: dict[str, int] = {}
    """Of the photographs that were asked for."""
    patch_pixels: PatchSizes | None = absent()
    """Of the new patches."""
    query_sets: dict[str, TableRepair] = {}
    device: str | None = absent()
    """What the new patches were embedded on."""
    unchanged: bool


class Estimate(Record):
    """What a run would take, scaled from a trial; nothing is known but `trial_failed` where that
    was not usable."""

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
