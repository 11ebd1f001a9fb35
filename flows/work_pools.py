"""The work pools and queues that a deployments file asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker
from pydantic import Field, ValidationError

from flows.api import prefect_errors
from rdm.config import Config
from rdm.errors import UsageError


class WorkPool(Config):
    """One entry of `work_pools:` in a deployments file."""

    name: str
    type: str = Field(
        default="process", pattern="^process$", description="others are created with Prefect"
    )
    queues: dict[str, int] = Field(default={}, description="how many runs of a queue go at a time")


def read_deployments_file(path: Path) -> tuple[list[WorkPool], list[dict[str, Any]]]:
    """Return the work pools and the deployments of a prefect.yaml.

    Raises:
        UsageError: the file does not exist, or does not hold them.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        pools = [WorkPool.model_validate(entry) for entry in content.get("work_pools", [])]
        return pools, list(content["deployments"])
    except OSError as error:
        raise UsageError(
            f"the deployments file cannot be read: {error.strerror}",
            where=path,
            fix="run from the project's folder, or give --prefect-file",
        ) from error
    except (yaml.YAMLError, ValidationError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"this is no deployments file: {error}",
            where=path,
            fix="compare it with infra/prefect.yaml",
        ) from error


def create_work_pools(pools: list[WorkPool]) -> None:
    """Create missing work pools and queues on PREFECT_API_URL's server; set queue limits.

    Raises:
        UsageError: no server is named.
        RdmError: the server does not answer.
    """
    url = get_current_settings().api.url
    if url is None:
        raise UsageError(
            "PREFECT_API_URL is not set, so there is no server to deploy to",
            fix="prefect server start, then export PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    with prefect_errors(url), get_client(sync_client=True) as client:
        for pool in pools:
            _create(client, pool)


def _create(client: SyncPrefectClient, pool: WorkPool) -> None:
    # Created only where it is missing: a pool that somebody set up stays as it is.
    try:
        client.read_work_pool(pool.name)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=pool.name,
                type=pool.type,
                base_job_template=ProcessWorker.get_default_base_job_template(),
            )
        )

    for name, limit in pool.queues.items():
        try:
            queue = client.read_work_queue_by_name(name, work_pool_name=pool.name)
        except ObjectNotFound:
            queue = client.create_work_queue(name, work_pool_name=pool.name)
        client.update_work_queue(queue.id, concurrency_limit=limit)
