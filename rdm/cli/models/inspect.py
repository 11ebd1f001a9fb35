"""`rdm inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import JsonFlag, show, show_rows


def register(app: App) -> None:
    """Add the command."""
    app.command(inspect)


def inspect(
    picture: Annotated[Path, Parameter(help="a PNG that `rdm sample` drew")],
    *,
    json: JsonFlag = False,
) -> None:
    """Say what a picture was drawn from: query, seed, settings, and the photographs that
    conditioned it.

    Example: rdm inspect samples/00000.png
    """
    from rdm.sampling.picture_file import read_recipe

    record = read_recipe(picture)
    if json:
        show(record.model_dump(mode="json"), as_json=True)
        return
    show(
        record.model_dump(mode="json", exclude={"neighbors", "format"}),
        as_json=False,
        title=str(picture),
    )
    rows = [
        [
            credit.patch_id,
            credit.similarity,
            credit.image_id,
            credit.author,
            credit.license,
            credit.url,
        ]
        for credit in record.neighbors
    ]
    show_rows(["patch", "similarity", "image", "author", "license", "url"], rows, "conditioned by")
