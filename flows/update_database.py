"""The flow `update-database`: does nothing, quickly, when nothing changed."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows.build_database import run_builder
from flows.measure import StageLog
from rdm.compute import ComputeConfig
from rdm.compute.device import DeviceName
from rdm.config import Record
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import update_builder
from rdm.database.building.results import BuildResult, PlanFacts
from rdm.database.changes.announcements import News, announce, ensure_announced, news
from rdm.database.changes.plan import Removal
from rdm.database.changes.version_diff import ChangeFacts, describe_changes
from rdm.database.contract import CHANGES_PAGE
from rdm.report.html.changes import change_rows, write_changes_page

UPDATED_EVENT = "rdm.database.updated"


class PublishedChanges(ChangeFacts):
    """What changed, and the page that shows it."""

    gallery: str


class UpdateResult(Record):
    """What an update planned and did."""

    planned: PlanFacts
    built: BuildResult | None
    """None: nothing had changed."""
    changes: PublishedChanges | None
    """None where none were published: all were already, or this is the first version."""


@task(cache_policy=NO_CACHE)
def publish_changes(root: str, since: int) -> PublishedChanges:
    """Publish a table of what changed, and a link to a page that shows what is new."""
    database = RetrievalDatabase.open(root)
    changes = describe_changes(database.folder, since=since)
    page = Path(database.folder.path(CHANGES_PAGE)).resolve()
    write_changes_page(page, database, changes)

    about = f"{root}, from version {changes.since} to {changes.version}"
    create_table_artifact(key="database-changes", table=change_rows(changes), description=about)
    create_link_artifact(
        key="database-gallery",
        link=page.as_uri(),
        description=f"new and removed patches of {about}",
    )
    return PublishedChanges(**changes.facts().model_dump(), gallery=str(page))


@flow(name="update-database", validate_parameters=True)
def update_database(
    root: str,
    delete_images: list[str] | None = None,
    delete_patches: list[int] | None = None,
    delete_where: str = "",
    retry_failed: bool = False,
    only_delete: bool = False,
    overrides: list[str] | None = None,
    dask: str = "local",
    stage_log: str | None = None,
    device: DeviceName = "auto",
) -> UpdateResult:
    """Bring a database up to date with its source: add what is new, delete what is gone or asked to
    go.

    Args:
        root: folder of an existing database.
        delete_images: image ids to delete for good.
        delete_patches: patch ids to delete for good.
        delete_where: condition on the rows of `images/*.parquet`; the images that fulfill it are
            deleted for good.
        retry_failed: ask again for photographs that failed by a cause that may have passed.
        only_delete: do not look at the source; what is new there waits for another run.
        overrides: settings as `key=value`, where they are not fixed, for this run and later ones.
        dask: `local`, or a scheduler's address.
        stage_log: folder for measurements; by default beside the database.
        device: what the encoder computes on; `auto`: a GPU where a worker finds one.
    """
    removal = Removal(frozenset(delete_images or ()), frozenset(delete_patches or ()), delete_where)
    builder = update_builder(
        root, removal, retry_failed=retry_failed, only_delete=only_delete, overrides=overrides or []
    )

    plan = builder.plan()
    facts = plan.facts()
    built, changes = None, None
    if facts.changed:
        ensure_announced(builder.folder)
        log = StageLog(stage_log or f"{root.rstrip('/')}.stages")
        compute = ComputeConfig(dask=dask, device=device)
        built = run_builder(builder, compute, log, planned=plan)
    else:
        get_run_logger().info(
            "nothing changed: %d photographs in %s", facts.photographs, builder.config.source
        )

    # Also what a killed run did not announce any more.
    if (untold := news(builder.folder)) is not None:
        changes = _announce_changes(root, untold)
        announce(builder.folder)
    return UpdateResult(planned=facts, built=built, changes=changes)


def _announce_changes(root: str, untold: News) -> PublishedChanges | None:
    """Publish the changes of this run, or of one that was killed, and send the event on which
    dependent flows start."""
    changes = publish_changes(root, untold.since) if untold.since else None

    # Automations listen for it, with or without a page of changes.
    emit_event(
        UPDATED_EVENT,
        resource={"prefect.resource.id": f"rdm.database.{root}"},
        payload={
            "root": root,
            "since": untold.since,
            "version": untold.version,
            "patches_added": untold.patches_added,
            "patches_removed": untold.patches_removed,
        },
    )
    return changes
