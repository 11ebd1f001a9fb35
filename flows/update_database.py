"""The flow `update-database`: does nothing, quickly, when nothing changed."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows.build_database import run_stages
from flows.measure import StageLog
from rdm.database.changes import Removal
from rdm.database.jobs import update_builder, update_plan

UPDATED_EVENT = "rdm.database.updated"


@flow(name="update-database", validate_parameters=True)
def update_database(
    root: str,
    delete_images: list[str] | None = None,
    delete_patches: list[int] | None = None,
    delete_where: str = "",
    retry_failed: bool = False,
    dask: str = "local",
    stage_log: str | None = None,
) -> dict[str, Any]:
    """Bring a database up to date with its source: add what is new, delete what is gone or asked to go.

    Args:
        root: folder of an existing database.
        delete_images: image ids to delete for good.
        delete_patches: patch ids to delete for good.
        delete_where: condition on the rows of `images/*.parquet`; the images that fulfill it are deleted for good.
        retry_failed: ask again for photographs that failed by a cause that may have passed.
        dask: `local`, or a scheduler's address.
        stage_log: folder for measurements; by default beside the database.
    """
    removal = Removal(frozenset(delete_images or ()), frozenset(delete_patches or ()), delete_where)
    builder = update_builder(root, removal, retry_failed=retry_failed)
    plan = update_plan(builder)
    if not plan["changed"]:
        get_run_logger().info("nothing changed: %d photographs in %s", plan["photographs"], builder.config.source)
        return plan
    result = run_stages(builder, dask, StageLog(stage_log or f"{root.rstrip('/')}.stages"))
    emit_event(
        UPDATED_EVENT,
        resource={"prefect.resource.id": f"rdm.database.{root}"},
        payload={"version": result["version"], "new": plan["new"], "gone": plan["gone"]},
    )
    return {**plan, **result}
