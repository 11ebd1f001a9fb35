"""`rdm export-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from rdm.cli.console import JsonFlag, show


def register(app: App) -> None:
    """Add the command."""
    app.command(export_model, name="export-model")


def export_model(
    *,
    model: Annotated[
        str, Parameter(help="assets://NAME, or a `model` folder that `rdm train` wrote")
    ],
    out: Annotated[Path, Parameter(help="a new folder")],
    precision: Annotated[
        Literal["fp16", "bf16"], Parameter(help="of the weights in the file")
    ] = "fp16",
    autoencoder: Annotated[
        str | None,
        Parameter(help="another first stage of the same latents: assets://NAME or a folder"),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a copy of a model with 16-bit weights: half the size, for sharing. It opens wherever
    the model does.

    Example: rdm export-model --model run/model --out rdm-birds
    """
    from rdm.training.half_precision import export_model as export

    size = export(model, out, precision, autoencoder)
    show({"out": out, "bytes": size}, as_json=json, title="exported")
