"""`rdm serve`."""

from __future__ import annotations

import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, DryRunFlag, JsonFlag, SetOption, show
from rdm.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from rdm.serving.settings import ServeSettings


def register(app: App) -> None:
    """Add the command."""
    app.command(serve)


def serve(
    *,
    model: Annotated[
        list[str] | None,
        Parameter(help="NAME=DIR or NAME=assets://NAME; any number of times", negative=""),
    ] = None,
    database: Annotated[
        list[str] | None, Parameter(help="NAME=DB; any number of times", negative="")
    ] = None,
    demo: Annotated[
        bool,
        Parameter(negative="", help="the model that ships, with databases of embedded pictures"),
    ] = False,
    host: Annotated[str, Parameter(help="another one than loopback wants --token-file")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Parameter(help="0: any that is free")] = 8420,
    token_file: Annotated[
        Path | None, Parameter(help="a file with the token that clients must show")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        Parameter(help="a name that a proxy forwards in Host; any number of times", negative=""),
    ] = None,
    data: Annotated[
        Path | None, Parameter(help="folder for jobs and pictures; by default ./rdm-serve")
    ] = None,
    clip_retrieval: Annotated[
        bool, Parameter(negative="", help="answer clip-retrieval's client too")
    ] = False,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    open_: Annotated[
        bool, Parameter(name="--open", negative="", help="open the page in a browser")
    ] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Serve models and databases: a page that shows what pictures are drawn from, and its API.

    Ctrl-C ends it: what is being drawn is finished, what waits goes on with the next start. Limits
    are settings, such as --set max_images=4.

    Example: rdm serve --demo --open
    """
    from rdm.serving.settings import Limits, ServeSettings, parse_named, read_token

    models, databases = (
        parse_named(model or [], "--model"),
        parse_named(database or [], "--database"),
    )

    # Only what is not given comes from the demo.
    if demo:
        from rdm.serving.demo import MODEL, demo_data, demo_databases

        models, databases = models or (MODEL,), databases or demo_databases()
        data = data or demo_data()
    if not databases:
        raise UsageError(
            "nothing to serve", fix="rdm serve --demo, or give --database NAME=DB --model NAME=DIR"
        )

    # The token is read once, before the server listens.
    settings = ServeSettings(
        models=models,
        databases=databases,
        host=host,
        port=port,
        token=read_token(token_file, host),
        allowed_hosts=tuple(allowed_host or ()),
        device=device,
        data=data or Path("rdm-serve"),
        clip_retrieval=clip_retrieval,
        limits=Limits().with_overrides(set_ or []),
    )

    if dry_run:
        show(_plan(settings, demo), as_json=json, title="would serve")
        return
    _run(settings, demo=demo, opens=open_)


def _run(settings: ServeSettings, *, demo: bool, opens: bool) -> None:
    try:
        from rdm.serving.http.server import serve as run_server
    except ImportError as error:
        raise MissingDependencyError(
            f"the server's packages are not installed: {error}",
            fix="pip install 'retrieval-diffusion[serve]'",
        ) from error

    if demo:
        from rdm.serving.demo import build_demo

        build_demo(_tell)

    def listening(address: str) -> None:
        _tell(f"serving on {address}  (Ctrl-C ends it)")
        if settings.token is not None:
            _tell("clients show the token: Authorization: Bearer TOKEN; the page asks for it")
        if opens:
            # in a thread: a browser may take its time, or stay in the foreground
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    run_server(settings, listening)


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _plan(settings: ServeSettings, demo: bool) -> dict[str, object]:
    """Return what would be served, what it takes, and what does not belong together."""
    from rdm.serving.plan import serving_plan

    return serving_plan(settings, is_demo=demo)
