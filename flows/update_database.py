"""The flow `update-database`: does nothing, quickly, when nothing changed."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows.build_database import run_stages
from flows.measure import StageLog
from flows.progress import artifact_progress
from rdm.compute import ComputeConfig
from rdm.database.jobs import update_builder, update_plan, update_refresh_neighbors

UPDATED_EVENT = "rdm.database.updated"


@task(cache_policy=NO_CACHE)
def neighbors(root: str, dask: str) -> list[str]:
    """Look the neighbors of every query set up again."""
    with artifact_progress():
        return update_refresh_neighbors(root, ComputeConfig(dask=dask))


@flow(name="update-database", validate_parameters=True)
def update_database(
    root: str, delete_images: list[str] | None = None, dask: str = "local", stage_log: str | None = None
) -> dict[str, Any]:
    """Bring a database up to date with its source: add what is new, delete what is gone or asked to go.

    Args:
        root: folder of an existing database.
        delete_images: image ids to delete for good.
        dask: `local`, or a scheduler's address.
        stage_log: folder for measurements; by default beside the database.
    """
    builder = update_builder(root, delete_images or [])
    plan = update_plan(builder)
    if not plan["changed"]:
        get_run_logger().info("nothing changed: %d photographs in %s", plan["photographs"], builder.config.source)
        return plan
    result = run_stages(builder, dask, StageLog(stage_log or f"{root.rstrip('/')}.stages"))
    result["query_sets"] = neighbors(root, dask)
    emit_event(
        UPDATED_EVENT,
        resource={"prefect.resource.id": f"rdm.database.{root}"},
        payload={"version": result["version"], "new": plan["new"], "gone": plan["gone"]},
    )
    return {**plan, **result}
