"""`rdm reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, JsonFlag, show


def register(app: App) -> None:
    """Add the command."""
    app.command(reproduce)


def reproduce(
    picture: Annotated[Path, Parameter(help="a PNG that `rdm sample` drew")],
    *,
    model: Annotated[
        str | None, Parameter(help="the model that drew it; needless where it ships: assets://NAME")
    ] = None,
    database: Annotated[
        list[str] | None,
        Parameter(help="a database that it was drawn from; once for each", negative=""),
    ] = None,
    image: Annotated[
        Path | None, Parameter(help="the query picture, where its embedding was a token")
    ] = None,
    start: Annotated[
        Path | None, Parameter(help="the picture that drawing started from, where it did")
    ] = None,
    mask: Annotated[Path | None, Parameter(help="its mask")] = None,
    towards_image: Annotated[
        Path | None,
        Parameter(help="the picture that the query was turned to, where its embedding was a token"),
    ] = None,
    weaker: Annotated[
        str | None, Parameter(help="the model that autoguidance led away from")
    ] = None,
    out: Annotated[Path | None, Parameter(help="where the new picture is written, a PNG")] = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> int:
    """Draw a picture again from the recipe that it carries, and compare the pixels.

    Exit code 0: every pixel is the same; 1: some differ, or it cannot be drawn again.

    Example: rdm reproduce samples/00000.png --model run/model --database birds
    """
    from PIL import Image

    from rdm.compute.device import compute_device
    from rdm.database import RetrievalDatabase
    from rdm.errors import UsageError
    from rdm.generators.model_folder import open_model
    from rdm.models.assets import is_asset
    from rdm.sampling.recipe.picture_file import read_picture
    from rdm.sampling.reproduce import Given, reproduce
    from rdm.sampling.retrieval.queries import load_query_image

    # The recipe names the model; a path of another machine would not open here.
    drawn = read_picture(picture)
    name = model or drawn.record.model.name
    if model is None and not is_asset(name):
        raise UsageError(
            f"the picture was drawn by the model {name} {drawn.record.model.digest}, which does "
            "not ship",
            fix="--model DIR",
        )

    opened = open_model(name, compute_device(device))
    databases = [RetrievalDatabase.open(root, device=device) for root in database or ()]

    # Pictures that were given stand in no recipe, only their digests do.
    query = None if image is None else load_query_image(image)
    towards = None if towards_image is None else load_query_image(towards_image)
    given = Given(query, start, mask, weaker, towards)
    pixels, found = reproduce(drawn, opened, databases, given)

    if out is not None:
        Image.fromarray(pixels).save(out, "PNG")

    title = "identical" if found.identical else "different"
    show(found.to_json(), as_json=json, title=title)
    return 0 if found.identical else 1
