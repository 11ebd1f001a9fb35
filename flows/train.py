"""The flow `train`: neighbors, latents, and the DeepSpeed job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from flows.measure import StageLog
from flows.progress import artifact_progress
from flows.training_artifacts import TrainingArtifacts
from rdm.compute import Clusters, ComputeConfig, compute_pool
from rdm.compute.device import DeviceName
from rdm.compute.pool import Pool
from rdm.config import Record
from rdm.database.neighbors.lookup import build_neighbors
from rdm.errors import JobError, RdmError, StorageError
from rdm.recipes import recipe_config
from rdm.report.run_card import write_run_card
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.data.latent_cache import CacheConfig, build_cache
from rdm.training.job.hostfile import REMOTE_SHELL, Cluster
from rdm.training.job.launch import run_training, settled
from rdm.training.open_run import check_inputs, is_on_pixels, needed_inputs, reads_photographs
from rdm.training.presets import cache_config, neighbor_config
from rdm.training.stats import StatsRow


class NeighborCounts(Record):
    """What became of a query set's crops, and how near their neighbors are."""

    num_queries: int
    failures: int
    mean_top1_similarity: float


class CacheCounts(Record):
    """How many latents there are, and of how many photographs there are none."""

    num_latents: int
    failures: int


@task(name="neighbors", cache_policy=NO_CACHE)
def neighbors_task(database: str, queries: str, name: str, pool: Pool) -> NeighborCounts:
    """Precompute the neighbors of the query set."""
    info = build_neighbors(database, name, neighbor_config(queries), pool)
    return NeighborCounts(
        num_queries=info.num_queries,
        failures=len(info.failures),
        mean_top1_similarity=info.mean_top1_similarity,
    )


@task(name="cache", cache_policy=NO_CACHE)
def cache_task(out: str, config: CacheConfig, pool: Pool) -> CacheCounts:
    """Encode the query set into latents."""
    info = build_cache(out, config, pool)
    return CacheCounts(num_latents=info.num_latents, failures=len(info.failures))


def may_succeed_again(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    """Return whether a failed task is worth a retry: refused inputs are refused again."""
    error = state.result(raise_on_failure=False)
    # A crashed rank or a disk may be better next time; a setting or an input will not be.
    return not isinstance(error, RdmError) or isinstance(error, JobError | StorageError)


@task(name="train", cache_policy=NO_CACHE, retry_condition_fn=may_succeed_again)
def train_task(config: TrainConfig, inputs: TrainInputs, cluster: Cluster) -> StatsRow:
    """Train under the deepspeed launcher; a retry resumes from the last checkpoint."""
    artifacts = TrainingArtifacts(Path(inputs.out))
    result = run_training(config, inputs, cluster, artifacts.update)
    write_run_card(Path(inputs.out))
    artifacts.publish()
    return result


@flow(name="train", validate_parameters=True)
def train(
    queries: str,
    out: str,
    database: str | None = None,
    cache: str | None = None,
    recipe: str = "rdm-tiny",
    name: str = "train",
    overrides: list[str] | None = None,
    dask: str = "local",
    stage_log: str | None = None,
    hostfile: str | None = None,
    master_address: str | None = None,
    master_port: int | None = None,
    remote_shell: str = REMOTE_SHELL,
    retries: int = 1,
    autoencoder: str = "assets://autoencoder-kl-f4",
    cache_overrides: list[str] | None = None,
    prepare_device: DeviceName = "auto",
) -> StatsRow:
    """Prepare neighbors and latents of a query set where they are missing, and train on them.

    A first stage and `clip-lite` train on the photographs themselves: nothing is prepared for them.

    Args:
        queries: source of the training photographs, disjoint from the database's.
        out: folder of the run; its `model/` is the result.
        database: folder of the retrieval database; of no use to recipes that train on photographs.
        cache: folder of the latents; likewise.
        recipe: see `rdm recipes`.
        name: of the query set inside the database.
        overrides: settings of the recipe as `key=value`.
        dask: `local`, or a scheduler's address.
        stage_log: folder for measurements; by default in `out`.
        hostfile: machines that train, as for `rdm train`; by default this one.
        master_address: where the other machines reach the first one; by default its name.
        master_port: port of the first machine where the ranks meet; by default a free one, or 29500
            for several.
        remote_shell: how a command is run on a machine.
        retries: how often a job that crashed is started again; it resumes from the last checkpoint.
        autoencoder: first stage of the latents; of no use to recipes on pixels.
        cache_overrides: settings of the latents as `key=value`, such as `content=indices` for RARM.
        prepare_device: what neighbors and latents are computed on; the training's own is the
            setting `device`.
    """
    config = recipe_config(recipe).with_overrides(overrides or [])
    cluster = (
        Cluster.from_hostfile(Path(hostfile), master_address, remote_shell, master_port)
        if hostfile
        else Cluster(master_port=master_port)
    )

    # A recipe on pixels has no latents to prepare.
    first_stage = "none" if is_on_pixels(config) else autoencoder
    request = TrainRequest(
        config=config,
        inputs=TrainInputs(out=out, cache=cache, database=database, source=queries),
        cluster=cluster,
        name=name,
        latents=cache_config(queries, first_stage).with_overrides(cache_overrides or []),
        compute=ComputeConfig(dask=dask, device=prepare_device),
        retries=retries,
    )
    return run_train(request, StageLog(stage_log or f"{out}/stages"))


@dataclass(frozen=True)
class TrainRequest:
    """What is trained, on what, where, and how neighbors and latents are prepared for it.

    Args:
        config: of the training.
        inputs: what it reads, and where it writes.
        cluster: the machines.
        name: of the query set inside the database.
        latents: settings of the latents.
        compute: where neighbors and latents are computed.
        retries: how often a job that crashed is started again.
    """

    config: TrainConfig
    inputs: TrainInputs
    cluster: Cluster
    name: str
    latents: CacheConfig
    compute: ComputeConfig
    retries: int = 1


def run_train(request: TrainRequest, log: StageLog, clusters: Clusters | None = None) -> StatsRow:
    """Prepare what is missing and train, as tasks, measured. Clusters that stages share end before
    the training."""
    config, inputs = request.config, request.inputs
    # What the job would refuse is refused before anything is prepared for it
    settled(config, inputs, request.cluster)

    with artifact_progress():
        if reads_photographs(config):
            check_inputs(config, inputs)
        else:
            _prepare(request, log, clusters)
        if clusters is not None:
            clusters.close()  # the job wants the memory and the cores
        with log.stage("train") as facts:
            result = train_task.with_options(retries=request.retries)(
                config, inputs, request.cluster
            )
            facts["steps"] = result.step
    return result


def _prepare(request: TrainRequest, log: StageLog, clusters: Clusters | None) -> None:
    """Precompute latents of the query set, and neighbors where they condition."""
    parts = (*needed_inputs(request.config), "source")
    needed = {part: request.inputs.require(part, request.config.recipe) for part in parts}
    cache, queries = needed["cache"], needed["source"]
    with compute_pool(request.compute, clusters) as pool:
        if "database" in needed:
            with log.stage("neighbors") as facts:
                found = neighbors_task(needed["database"], queries, request.name, pool)
                facts.update(found.to_json())
        with log.stage("cache") as facts:
            facts.update(cache_task(cache, request.latents, pool).to_json())
