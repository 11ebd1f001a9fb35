"""`rdm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import JsonFlag, SetOption, in_range, show
from rdm.errors import UsageError


def register(app: App) -> None:
    """Add the command."""
    app.command(sample)


def sample(
    *,
    model: Annotated[Path, Parameter(help="a `model` folder that `rdm train` wrote")],
    database: Annotated[str | None, Parameter(help="where neighbors are looked up; an LDM needs none")] = None,
    out: Annotated[Path, Parameter(help="folder for the pictures")] = Path("samples"),
    text: Annotated[list[str] | None, Parameter(help="query in words; any number of times", negative="")] = None,
    image: Annotated[list[Path] | None, Parameter(help="query as a picture; any number of times", negative="")] = None,
    unconditional: Annotated[bool, Parameter(help="draw queries from p_D", negative="")] = False,
    k: Annotated[
        int, Parameter(name=["-k", "--k"], help="neighbors that condition a sample", validator=in_range(1))
    ] = 4,
    guidance: Annotated[float, Parameter(help="guidance scale s; 1: none", validator=in_range(0))] = 2.0,
    top_m: Annotated[
        float, Parameter(help="fraction of the likeliest patches that p_D keeps", validator=in_range(0, 1, excluding=0))
    ] = 0.01,
    seeds: Annotated[str, Parameter(help="e.g. 0-7 or 3,5,9; picture i depends on seed i only")] = "0-7",
    set_: SetOption = None,
    json: JsonFlag = False,
) -> None:
    """Draw pictures for queries, each with a sidecar that names its neighbors, and a gallery page.

    Example: rdm sample --model run/model --database birds --text "an owl" --seeds 0-15
    """
    from rdm.database import RetrievalDatabase
    from rdm.report.pages import write_sample_gallery
    from rdm.sampling import SampleSettings, check_asked, image_queries, open_model, proposed_queries, text_queries
    from rdm.sampling import sample as draw
    from rdm.sampling.output import write_samples
    from rdm.sampling.queries import load_query_image

    if not (text or image or unconditional):
        raise UsageError("nothing to sample", fix='give --text "...", --image FILE or --unconditional')
    opened, source = open_model(model), None if database is None else RetrievalDatabase.open(database)
    check_asked(opened, source, texts_or_images=bool(text or image))
    settings = SampleSettings(k=k, guidance_scale=guidance).with_overrides(set_ or [])
    numbers = parse_seeds(seeds)
    queries = text_queries(source, text, k) if source and text else []
    if source and image:
        queries += image_queries(source, [load_query_image(path) for path in image], [str(path) for path in image], k)
    pairs = [(query, seed) for query in queries for seed in numbers]
    if unconditional:
        pairs += zip(proposed_queries(opened, source, numbers, top_m=top_m, k=k), numbers, strict=True)
    samples = draw(opened, source, [query for query, _ in pairs], [seed for _, seed in pairs], settings)
    write_samples(out, samples, opened, source, settings)
    write_sample_gallery(out / "index.html", samples, source)
    show({"out": out, "pictures": len(samples), "gallery": out / "index.html"}, as_json=json, title="sampled")


def parse_seeds(text: str) -> list[int]:
    """Return seeds from `0-7`, `3,5,9` or a mixture.

    Raises:
        UsageError: the text is neither.
    """
    seeds: list[int] = []
    try:
        for piece in text.split(","):
            first, _, last = piece.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise UsageError(f"{text!r} is no list of seeds", where="--seeds", fix="write 0-7 or 3,5,9") from error
    if not seeds:
        raise UsageError("there are no seeds", where="--seeds", fix="write 0-7 or 3,5,9")
    return seeds
