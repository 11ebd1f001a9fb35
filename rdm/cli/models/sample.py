"""`rdm sample`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, DryRunFlag, JsonFlag, SetOption, show
from rdm.cli.models.request_options import RequestOptions
from rdm.errors import UsageError

if TYPE_CHECKING:
    from rdm.database import RetrievalDatabase
    from rdm.sampling.request.sample_request import Request


def register(app: App) -> None:
    """Add the command."""
    app.command(sample)


def sample(
    *,
    options: RequestOptions = RequestOptions(),  # noqa: B008 - frozen
    out: Annotated[Path, Parameter(help="folder for the pictures")] = Path("samples"),
    request: Annotated[
        Path | None,
        Parameter(help="a request in JSON, as --print-request shows it; options change it"),
    ] = None,
    set_: SetOption = None,
    metadata: Annotated[
        Literal["full", "credits"],
        Parameter(help="what PNGs carry: all that they were drawn from, or no query and settings"),
    ] = "full",
    attribution: Annotated[
        list[Literal["attention", "influence"]] | None,
        Parameter(
            help="measure the share of each neighbor; attention: with heat maps", negative=""
        ),
    ] = None,
    credits: Annotated[
        bool, Parameter(help="write credits.txt: whose photographs these were", negative="")
    ] = False,
    dask: Annotated[
        str,
        Parameter(
            help="who draws: inline, this process; N, so many worker processes; local, one per "
            "core; or a scheduler's address tcp://HOST:PORT"
        ),
    ] = "inline",
    c2pa_cert: Annotated[
        Path | None,
        Parameter(help="sign pictures (C2PA): PEM certificates, the signer's first; extra c2pa"),
    ] = None,
    c2pa_key: Annotated[
        Path | None, Parameter(help="its private key in PEM; read, never shown or written")
    ] = None,
    device: DeviceOption = "auto",
    print_request: Annotated[
        bool,
        Parameter(
            help="show the request with everything filled in, as JSON, and stop", negative=""
        ),
    ] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Draw pictures for queries, each with a record that names its neighbors, and a gallery page.

    The same command again draws what is missing; another one needs another --out. Flags are short
    for settings: --set k=8 is -k 8, and where both are given --set holds.

    Example: rdm sample --model run/model --database birds --text "an owl" --seeds 0-15
    """
    from rdm.compute.device import compute_device
    from rdm.generators.model_folder import INFO, open_model, read_info
    from rdm.models.assets import named_folder
    from rdm.report.html.database_pages import write_sample_gallery
    from rdm.sampling.draw_request import draw_request
    from rdm.sampling.draw_shard import describe_drawing, drawing_pool
    from rdm.sampling.output import CONTACT
    from rdm.sampling.recipe.c2pa_signature import open_signer
    from rdm.sampling.retrieval.look_up import LookUp
    from rdm.sampling.write_credits import write_credits

    # Refuse what cannot be drawn before anything is opened.
    asked = options.request(request, set_ or [])
    if (c2pa_cert is None) != (c2pa_key is None):
        raise UsageError(
            "a signature needs a certificate and its key", fix="both --c2pa-cert and --c2pa-key"
        )
    signer = open_signer(c2pa_cert, c2pa_key) if c2pa_cert and c2pa_key else None
    if asked.model is None:
        raise UsageError("no model is named", where="--model", fix="--model DIR or assets://NAME")

    databases = _opened(asked, device)

    # What would be drawn, without opening the network.
    if print_request or dry_run:
        info = read_info(named_folder(asked.model, INFO, "model"))
        looked_up = LookUp(asked, info, databases)
        resolved = looked_up.resolved()
        if print_request:
            sys.stdout.write(resolved.model_dump_json(indent=1) + "\n")
            return
        looked_up.check()

        facts = {"out": out, "pictures": len(looked_up)}
        if json:
            show({**facts, "request": resolved.model_dump(mode="json")}, as_json=True)
        else:
            show(facts, as_json=False, title="would be sampled")
        return

    # Pictures that are there already are not drawn again.
    opened = open_model(asked.model, compute_device(device))
    with drawing_pool(dask, device) as pool:
        counts = draw_request(
            asked,
            opened,
            databases,
            out,
            metadata=metadata,
            attribution=attribution or (),
            pool=pool,
            signer=signer,
        )
        used = describe_drawing(opened, pool)

    # A run that drew nothing leaves the gallery of the one before.
    gallery = out / "index.html"
    if counts.drawn or not gallery.exists():
        write_sample_gallery(out, databases, counts.pictures)
    facts = {
        **counts.model_dump(exclude_none=True),
        "gallery": gallery,
        "contact_sheet": out / CONTACT,
        "device": used,
    }
    if credits:
        facts["credits"] = write_credits(out, databases.values())
    show(
        {"out": out, **facts}, as_json=json, title="sampled" if counts.drawn else "nothing to draw"
    )


def _opened(request: Request, device: DeviceOption) -> dict[str, RetrievalDatabase]:
    """Return the request's databases by their names, which are folders here."""
    from rdm.database import RetrievalDatabase

    return {
        one.name: RetrievalDatabase.open(one.name, version=one.version, device=device)
        for one in request.retrieval.databases
    }
