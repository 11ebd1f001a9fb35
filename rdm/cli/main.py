"""Entry point: parse, run, and turn every outcome into an exit code."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from importlib.metadata import entry_points

from cyclopts import App, CycloptsError

from rdm import __version__
from rdm.cli.console import console_progress, error_console
from rdm.errors import RdmError
from rdm.homes import use_writable_homes

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
_COMMANDS = (
    "database.state",
    "database.neighbors",
    "models.cache",
    "models.train",
    "models.status",
    "models.sample",
    "serve",
    "models.inspect",
    "models.pictures",
    "models.reproduce",
    "evaluation.evaluate",
    "evaluation.evaluate_autoencoder",
    "evaluation.evaluate_copies",
    "models.export_model",
    "evaluation.evaluate_recognition",
    "models.import_checkpoint",
    "models.recipes",
    "doctor",
)


def build_app() -> App:
    """Return the application: our commands and those of plugins (entry points `rdm.commands`)."""
    app = App(
        name="rdm",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        help=_HELP,
    )

    for name in _COMMANDS:
        importlib.import_module(f"rdm.cli.{name}").register(app)

    for plugin in entry_points(group="rdm.commands"):
        plugin.load()(app)
    return app


_HELP = """Retrieval-augmented diffusion, from photographs to pictures.

Start with `rdm quickstart --root DIR`: it builds a database from embedded photographs, trains on
it, samples, measures, and writes report.html, in minutes on two cores.

Exit codes: 0 ok, 1 failure, 2 usage, 3 partial (some pictures could not be used; the ledger says
which), 130 interrupted.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; errors are printed as what, where and how to fix."""
    _configure_logging()
    use_writable_homes()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of every script, in a terminal of one
        sys.stdout.reconfigure(errors="backslashreplace")

    try:
        with console_progress():
            # Without exits of the parser's own, whose codes are not those that the help promises.
            code = build_app()(arguments, exit_on_error=False, print_error=True)
    # Printed already, by `print_error`.
    except CycloptsError:
        return EXIT_USAGE
    except RdmError as error:
        error_console().print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return error.exit_code
    except KeyboardInterrupt:
        error_console().print(
            "interrupted; nothing that was complete is lost: run the same command again to resume",
            style="yellow",
            soft_wrap=True,
        )
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_OK


def _configure_logging() -> None:
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars would cut through ours
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    # where there are no progress bars, the library's own lines tell how it goes
    if not error_console().is_terminal:
        logging.getLogger("rdm").setLevel(logging.INFO)
