"""The flow `evaluate`: held-out losses, FID and KID."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.progress import artifact_progress
from rdm.compute.device import DeviceName
from rdm.evaluation.evaluate_model import (
    Evaluation,
    EvaluationConfig,
    EvaluationInputs,
    evaluate_model,
)
from rdm.training.presets import query_config


@task(name="measure", cache_policy=NO_CACHE)
def measure_task(
    inputs: EvaluationInputs, config: EvaluationConfig, out: str, device: DeviceName
) -> Evaluation:
    """Measure the model."""
    return evaluate_model(inputs, config, Path(out), device)


@flow(name="evaluate", validate_parameters=True)
def evaluate(
    model: str,
    reference: str,
    out: str,
    database: str | None = None,
    cache: str | None = None,
    overrides: list[str] | None = None,
    device: DeviceName = "auto",
) -> Evaluation:
    """Measure a model.

    Args:
        model: `assets://NAME`, or a `model` folder.
        reference: source of the photographs that samples should look like.
        out: folder for evaluation.json.
        database: folder of the database; of no use to a model that reads no neighbors.
        cache: latent cache with held-out photographs, for the losses.
        overrides: settings of the evaluation as `key=value`.
        device: what networks compute on; `auto`: a GPU where there is one.
    """
    inputs = EvaluationInputs(model, database, cache, query_config(reference))
    config = EvaluationConfig().with_overrides(overrides or [])
    with artifact_progress():
        result = measure_task(inputs, config, out, device)

    rows = [
        {"metric": metric.name, "value": metric.value, "reference": metric.reference}
        for metric in result.metrics
    ]

    losses = result.held_out.losses if result.held_out is not None else {}
    for name, interval in losses.items():
        rows.append(
            {
                "metric": f"held-out loss, {name}",
                "value": interval.mean,
                "reference": f"+- {interval.half_width:.4f}",
            }
        )

    create_table_artifact(key="evaluation", table=rows, description=f"{model} with {database}")
    return result
