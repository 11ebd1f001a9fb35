"""`rdm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DryRunFlag, JsonFlag, SetOption, show


def register(app: App) -> None:
    """Add the command."""
    app.command(train)


def train(
    *,
    recipe: Annotated[str, Parameter(help="see `rdm recipes`")],
    out: Annotated[str, Parameter(help="folder of the run")],
    cache: Annotated[str | None, Parameter(help="latent cache, for retrieval recipes")] = None,
    database: Annotated[str | None, Parameter(help="retrieval database, for retrieval recipes")] = None,
    source: Annotated[str | None, Parameter(help="photographs, for encoder and autoencoder recipes")] = None,
    config: Annotated[Path | None, Parameter(help="a JSON file of settings")] = None,
    set_: SetOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Train a recipe under the deepspeed launcher. The same command again resumes from the last checkpoint.

    Example: rdm train --recipe rdm-tiny --cache cache --database birds --out run --set max_steps=200
    """
    from rdm.training.launch import launch_command, num_ranks, run_training
    from rdm.training.recipes import TrainInputs, recipe_config

    settings = recipe_config(recipe).merged_with_file(config).with_overrides(set_ or [])
    inputs = TrainInputs(out=out, cache=cache, database=database, source=source)
    if dry_run:
        show(
            {
                "out": out,
                "ranks": num_ranks(settings),
                "command": " ".join(launch_command(settings, Path(out))),
                "config": settings.model_dump(mode="json"),
            },
            as_json=json,
        )
        return
    show({"model": f"{out}/model", **run_training(settings, inputs)}, as_json=json, title="trained")
