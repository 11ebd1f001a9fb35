"""The results that one stage of a build hands to the next: values, never changed in place."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.results import EmbedFacts, IngestFacts, PatchFacts, RepairFacts
from rdm.database.facts import VersionFacts
from rdm.storage import IndexFacts, Version


@dataclass(frozen=True)
class Ingested:
    """The new photographs are stored; the plan knows which ones failed."""

    plan: BuildPlan
    facts: IngestFacts


@dataclass(frozen=True, eq=False)
class Patchified:
    """The new photographs are cut; the plan knows which resemble another one.

    Args:
        plan: of the run.
        ingested: the counts of the stored photographs.
        duplicates: the near-duplicates among all photographs; None: not looked for.
        dropped: patches that filters left out, in this run and before, by cause.
        facts: of this run.
    """

    plan: BuildPlan
    ingested: IngestFacts
    duplicates: pa.Table | None
    dropped: dict[str, int]
    facts: PatchFacts


@dataclass(frozen=True, eq=False)
class Embedded:
    """The new patches are embedded, on a device in words (None without new patches)."""

    patches: Patchified
    device: str | None
    facts: EmbedFacts


@dataclass(frozen=True, eq=False)
class Indexed:
    """There is an index of all that lives, in its folder."""

    patches: Patchified
    place: str
    facts: IndexFacts


@dataclass(frozen=True, eq=False)
class Repaired:
    """The version to commit, whole: parts, index and neighbor tables stand."""

    plan: BuildPlan
    version: Version
    facts: RepairFacts


@dataclass(frozen=True)
class Committed:
    """The new version is the current one."""

    facts: VersionFacts
