"""The flow `build-database`: store, cut, embed, index, commit."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.measure import StageLog
from flows.progress import artifact_progress
from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.device import DeviceName
from rdm.compute.pool import Pool
from rdm.config import format_bytes
from rdm.database.building.builder import DatabaseBuilder
from rdm.database.building.jobs import build_config


@task(cache_policy=NO_CACHE)
def ingest(builder: DatabaseBuilder, pool: Pool) -> dict[str, Any]:
    """Store the photographs."""
    return builder.ingest(pool).to_json()


@task(cache_policy=NO_CACHE)
def patchify(builder: DatabaseBuilder, pool: Pool) -> dict[str, Any]:
    """Write the patches' coordinates."""
    return builder.patchify(pool).to_json()


@task(cache_policy=NO_CACHE)
def embed(builder: DatabaseBuilder, pool: Pool) -> dict[str, Any]:
    """Embed the patches."""
    return builder.embed(pool).to_json()


@task(cache_policy=NO_CACHE)
def index(builder: DatabaseBuilder, pool: Pool) -> dict[str, Any]:
    """Build and audit the index."""
    return builder.build_index(pool).to_json()


@task(cache_policy=NO_CACHE)
def repair(builder: DatabaseBuilder, pool: Pool) -> dict[str, Any]:
    """Bring the stored neighbors of every query set up to date."""
    return {name: table.to_json() for name, table in builder.repair_neighbors(pool).items()}


@task(cache_policy=NO_CACHE)
def commit(builder: DatabaseBuilder) -> dict[str, Any]:
    """Make the new version the current one."""
    version = builder.commit()
    return {
        "version": version.number,
        "photographs": version.num_images,
        "patches": version.num_live_patches,
        "bytes": version.num_bytes,
    }


@flow(name="build-database", validate_parameters=True)
def build_database(
    root: str,
    source: str,
    preset: str = "",
    overrides: list[str] | None = None,
    dask: str = "local",
    stage_log: str | None = None,
    device: DeviceName = "auto",
) -> dict[str, Any]:
    """Build a retrieval database, or finish one that was interrupted; a finished one is left as it is.

    Args:
        root: folder of the database.
        source: such as `folder:///photos` or `samples://openimages-birds/database`.
        preset: `paper` or `samples`; empty chooses by the source.
        overrides: settings as `key=value`.
        dask: `local`, or a scheduler's address.
        stage_log: folder for measurements; by default beside the database.
        device: what the encoder computes on; `auto`: a GPU where a worker finds one.
    """
    builder = DatabaseBuilder(root, build_config(source, preset).with_overrides(overrides or []))
    log = StageLog(stage_log or f"{root.rstrip('/')}.stages")
    return run_stages(builder, ComputeConfig(dask=dask, device=device), log)


def run_stages(builder: DatabaseBuilder, compute: ComputeConfig, log: StageLog) -> dict[str, Any]:
    """Run the stages as tasks, measured, and publish what came of them."""
    with artifact_progress(), builder.writing():
        if builder.is_current:
            assert builder.parent is not None
            return {"version": builder.parent.number, "unchanged": True}
        with compute_pool(compute) as pool:
            with log.stage("ingest") as facts:
                facts.update(ingest(builder, pool))
            if builder.is_current:
                assert builder.parent is not None
                return {"version": builder.parent.number, "unchanged": True}
            with log.stage("patchify") as facts:
                facts.update(patchify(builder, pool))
            with log.stage("embed") as facts:
                facts.update(embedded := embed(builder, pool))
                device_used = {"device": pool.describe_device()} if embedded["num_patches"] else {}
            with log.stage("index") as facts:
                facts.update(index(builder, pool))
            with log.stage("repair") as facts:
                facts.update(tables := repair(builder, pool))
        result = {**commit(builder), "query_sets": tables, **device_used}
    create_table_artifact(
        key="database",
        description=f"version {result['version']} of {builder.folder.url}",
        table=[
            {"what": "photographs", "count": result["photographs"]},
            {"what": "patches", "count": result["patches"]},
            {"what": "size", "count": format_bytes(result["bytes"])},
        ],
    )
    return {**result, "unchanged": False}
