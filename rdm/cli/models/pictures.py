"""`rdm pictures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import JsonFlag, show, show_rows


def register(app: App) -> None:
    """Add the command."""
    app.command(pictures)


def pictures(
    folder: Annotated[Path, Parameter(help="where drawn pictures are; folders below too")],
    *,
    of: Annotated[
        str,
        Parameter(help="the photograph: its image id, its SHA-256, or a patch as 77 or birds:77"),
    ],
    json: JsonFlag = False,
) -> None:
    """List the pictures that were drawn from a photograph, by the recipes that they carry.

    Example: rdm pictures samples --of owls/0123.jpg
    """
    from rdm.sampling.find_pictures import pictures_of

    found = pictures_of(of, folder)
    if json:
        show(found.to_json(), as_json=True)
        return

    # A recipe may leave neighbors out: then nobody can say for certain.
    rows = [
        [
            one.path,
            (", ".join(one.patches) or "through a picture that it was made from")
            if one.certain
            else "may be among those left out",
        ]
        for one in found.pictures
    ]
    show_rows(["picture", "patches"], rows, f"drawn from {of}")

    facts = {"found": len(rows), "examined": found.examined}
    show({**facts, "without a recipe": len(found.without_recipe)}, as_json=False)
