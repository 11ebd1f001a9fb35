"""The flow `verify-database`: checks what an update wrote before anybody relies on it."""

from __future__ import annotations

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.progress import artifact_progress
from rdm.config import Record
from rdm.database import RetrievalDatabase
from rdm.database.verify.verify import require_sound
from rdm.database.verify.verify import verify_database as find_damage


class Verification(Record):
    """Which version was found sound."""

    version: int
    since: int | None
    """What this older version has too was not read again; None: all was read."""


@task(name="verify", cache_policy=NO_CACHE)
def verify_task(root: str, since: int | None) -> list[str]:
    """Recompute digests and invariants; return what is wrong."""
    return find_damage(root, since=since)


@flow(name="verify-database", validate_parameters=True)
def verify_database(root: str, since: int | None = None) -> Verification:
    """Recompute every digest and invariant of a database; fail where one does not hold, and name
    the part.

    Args:
        root: folder of the database.
        since: an older version, such as the one before an update: what it has too is not read
            again. 0: all is.
    """
    version = RetrievalDatabase.open(root).version.number
    with artifact_progress():
        findings = verify_task(root, since)
    about = f"version {version} of {root}" + (
        f", what is new since version {since}" if since else ""
    )
    table = [{"finding": finding} for finding in findings or ["all is well"]]
    create_table_artifact(key="verification", table=table, description=about)
    require_sound(root, findings)
    return Verification(version=version, since=since)
