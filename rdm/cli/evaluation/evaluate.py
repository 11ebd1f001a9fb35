"""`rdm evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, JsonFlag, SetOption, show


def register(app: App) -> None:
    """Add the command."""
    app.command(evaluate)


def evaluate(
    *,
    model: Annotated[str, Parameter(help="assets://NAME, or a `model` folder")],
    reference: Annotated[
        str, Parameter(help="source of the photographs that samples should look like")
    ],
    database: Annotated[
        str | None, Parameter(help="where neighbors are looked up; not needed without")
    ] = None,
    cache: Annotated[
        str | None, Parameter(help="latent cache with held-out photographs, for the losses")
    ] = None,
    out: Annotated[Path, Parameter(help="folder for evaluation.json")] = Path("evaluation"),
    set_: SetOption = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> None:
    """Measure a model: held-out loss with a source true, shuffled and left out; FID and KID of
    unconditional samples.

    Example: rdm evaluate --model run/model --database birds --cache cache --reference
        folder:///photos
    """
    from rdm.evaluation.evaluate_model import EvaluationConfig, EvaluationInputs, evaluate_model
    from rdm.training.presets import query_config

    inputs = EvaluationInputs(model, database, cache, query_config(reference))
    result = evaluate_model(inputs, EvaluationConfig().with_overrides(set_ or []), out, device)
    show(result.to_json(), as_json=json, title="measured")
