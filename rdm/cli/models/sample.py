"""`rdm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, JsonFlag, SetOption, in_range, show


def register(app: App) -> None:
    """Add the command."""
    app.command(sample)


def sample(
    *,
    model: Annotated[
        str, Parameter(help="assets://NAME, or a `model` folder that `rdm train` wrote")
    ],
    database: Annotated[
        str | None, Parameter(help="where neighbors are looked up; an LDM needs none")
    ] = None,
    out: Annotated[Path, Parameter(help="folder for the pictures")] = Path("samples"),
    text: Annotated[
        list[str] | None, Parameter(help="query in words; any number of times", negative="")
    ] = None,
    image: Annotated[
        list[Path] | None, Parameter(help="query as a picture; any number of times", negative="")
    ] = None,
    class_: Annotated[
        list[str] | None,
        Parameter(name="--class", help="a class of the model; any number of times", negative=""),
    ] = None,
    unconditional: Annotated[bool, Parameter(help="draw queries from p_D", negative="")] = False,
    k: Annotated[
        int,
        Parameter(
            name=["-k", "--k"],
            help="neighbors that condition a sample; --set k",
            validator=in_range(1),
        ),
    ] = 4,
    guidance: Annotated[
        float,
        Parameter(help="guidance scale s; 1: none; --set guidance_scale", validator=in_range(0)),
    ] = 2.0,
    top_m: Annotated[
        float,
        Parameter(
            help="fraction of the likeliest patches that p_D keeps",
            validator=in_range(0, 1, excluding=0),
        ),
    ] = 0.01,
    seeds: Annotated[
        str, Parameter(help="e.g. 0-7 or 3,5,9; picture i depends on seed i only")
    ] = "0-7",
    set_: SetOption = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> None:
    """Draw pictures for queries, each with a record that names its neighbors, and a gallery page.

    The same command again draws what is missing; another one needs another --out. Flags are short
    for settings: --set k=8 is -k 8, and where both are given --set holds.

    Example: rdm sample --model run/model --database birds --text "an owl" --seeds 0-15
    """
    from rdm.compute.device import compute_device, describe_device
    from rdm.database import RetrievalDatabase
    from rdm.report.html.database_pages import write_sample_gallery
    from rdm.sampling import SampleSettings, open_model
    from rdm.sampling.draw_request import draw_request
    from rdm.sampling.request import SampleRequest

    request = SampleRequest(
        texts=tuple(text or ()),
        images=tuple(map(str, image or ())),
        classes=tuple(class_ or ()),
        unconditional=unconditional,
        seeds=seeds,
        top_m=top_m,
        settings=SampleSettings(k=k, guidance_scale=guidance).with_overrides(set_ or []),
    )
    used = compute_device(device)
    opened = open_model(model, used)
    source = None if database is None else RetrievalDatabase.open(database, device=device)
    counts = draw_request(request, opened, source, out)
    gallery = out / "index.html"
    if counts.drawn or not gallery.exists():
        write_sample_gallery(out, source, counts.pictures)
    facts = {**counts.model_dump(), "gallery": gallery, "device": describe_device(used)}
    show(
        {"out": out, **facts}, as_json=json, title="sampled" if counts.drawn else "nothing to draw"
    )
