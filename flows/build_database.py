"""The flow `build-database`: store, cut, embed, index, commit."""

from __future__ import annotations

from collections.abc import Callable

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.measure import StageLog
from flows.progress import artifact_progress
from rdm.compute import Clusters, ComputeConfig
from rdm.compute.device import DeviceName
from rdm.config import format_bytes
from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.builder import DatabaseBuilder
from rdm.database.building.jobs import build_config, run_build
from rdm.database.building.results import BuildResult
from rdm.database.building.stages import ResultT


@flow(name="build-database", validate_parameters=True)
def build_database(
    root: str,
    source: str,
    preset: str = "",
    overrides: list[str] | None = None,
    dask: str = "local",
    stage_log: str | None = None,
    device: DeviceName = "auto",
) -> BuildResult:
    """Build a retrieval database, or finish one that was interrupted; a finished one is left as it
    is.

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
    return run_builder(builder, ComputeConfig(dask=dask, device=device), log)


def run_builder(
    builder: DatabaseBuilder,
    compute: ComputeConfig,
    log: StageLog,
    *,
    planned: BuildPlan | None = None,
    clusters: Clusters | None = None,
) -> BuildResult:
    """Run the stages of a build or an update as tasks, measured, and publish what came of them."""

    # Stages become tasks under their own names; the database has its own resume, so no cache.
    def run(name: str, work: Callable[[], ResultT], /) -> ResultT:
        @task(name=name, cache_policy=NO_CACHE)
        def stage() -> ResultT:
            return work()

        with log.stage(name) as facts:
            result = stage()
            facts.update(result.facts.to_json())
        return result

    with artifact_progress():
        result = run_build(builder, compute, planned=planned, clusters=clusters, run=run)

    if not result.unchanged:
        create_table_artifact(
            key="database",
            description=f"version {result.version} of {builder.folder.url}",
            table=[
                {"what": "photographs", "count": result.photographs},
                {"what": "patches", "count": result.patches},
                {"what": "size", "count": format_bytes(result.num_bytes)},
            ],
        )
    return result
