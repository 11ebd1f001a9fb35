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
    database: Annotated[
        list[str] | None,
        Parameter(help="a database that it was drawn from: says what was removed", negative=""),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show everything that a picture carries: what it was drawn from and how, whose photographs
    conditioned it, and with their databases whether these are still there.

    Example: rdm inspect samples/00000.png --database birds
    """
    from rdm.database import RetrievalDatabase
    from rdm.sampling.neighbor_states import neighbor_states
    from rdm.sampling.picture_digest import pixels_digest
    from rdm.sampling.recipe.picture_file import XMP_KEY, read_picture

    # The neighbors as the databases have them now: some may have been removed since.
    pixels, record, texts = read_picture(picture)
    opened = [RetrievalDatabase.open(root) for root in database or ()]
    states = [one.state for one in neighbor_states(record, opened)]
    gone = [state for state in states if state in ("removed", "deleted", "missing", "another")]
    facts = {
        "pixels_are_as_drawn": pixels_digest(pixels) == record.pixels_sha256,
        "neighbor_states": states,
        "conditioned_on_removed": "removed" in states,
    }

    if json:
        show({**record.to_json(), **facts, "xmp": texts.get(XMP_KEY)}, as_json=True)
        return

    # People get the neighbors as a table of their own.
    shown = record.model_dump(mode="json", exclude={"neighbors", "format"})
    del facts["neighbor_states"]
    show({**shown, **facts}, as_json=False, title=str(picture))
    columns = ["patch", "similarity", "title", "author", "license", "page", "in the database"]
    rows = [
        [
            f"{one.database}:{one.patch_id}",
            one.similarity,
            one.title or one.image_id,
            one.author,
            one.license,
            one.landing_page or one.url,
            state,
        ]
        for one, state in zip(record.looked_at, states, strict=True)
    ]
    show_rows(columns, rows, "conditioned by")

    if gone:
        show({"no longer there": f"{len(gone)} of {len(states)} neighbors"}, as_json=False)
