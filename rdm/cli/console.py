"""What the terminal shows: progress bars, tables, JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rdm.config import format_bytes
from rdm.progress import progress_to

JsonFlag = Annotated[
    bool, Parameter(name="--json", negative="", help="print one JSON object instead of a table")
]
DryRunFlag = Annotated[
    bool, Parameter(name="--dry-run", negative="", help="say what would be done, and stop")
]
SetOption = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help="key=value, any number of times; a.b=1 reaches inside", negative=""
    ),
]
DaskOption = Annotated[
    str,
    Parameter(name="--dask", help="`local`, `inline`, or a scheduler's address tcp://HOST:PORT"),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    Parameter(name="--device", help="what networks compute on; auto: a GPU where there is one"),
]


def in_range(
    least: float, most: float = math.inf, *, excluding: float | None = None
) -> Callable[[Any, float | None], None]:
    """Return a validator for a numeric option's Parameter: a number outside is a usage error."""
    allowed = f"{least} or more" if most == math.inf else f"from {least} to {most}"
    but = "" if excluding is None else f", but not {excluding}"

    def check(_type: Any, value: float | None) -> None:
        # nan is in no range
        if value is not None and (not least <= value <= most or value == excluding):
            raise ValueError(f"Must be {allowed}{but}.")

    return check


class _RateColumn(ProgressColumn):
    """Items a second, those of an earlier run not counted."""

    def render(self, task: Task) -> Text:
        """See ProgressColumn."""
        return Text("" if task.speed is None else f"{task.speed:.3g}/s")


class RichSink:
    """Shows each stage as a bar with a rate, the time it took and the time it will take."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        """See ProgressSink."""
        self._task = self._progress.add_task(
            f"{stage:<14}", total=total, completed=done, unit=unit, note=""
        )

    def update(self, done: int, note: str) -> None:
        """See ProgressSink."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, note=note)

    def finish(self) -> None:
        """See ProgressSink."""
        if self._task is not None:
            self._progress.stop_task(self._task)


@contextmanager
def console_progress() -> Iterator[None]:
    """Show progress as bars on a terminal; elsewhere the log's lines do."""
    console = error_console()
    # In a file or a pipe a bar would be thousands of lines of control characters.
    if not console.is_terminal:
        with nullcontext():
            yield
        return

    # What is counted, how fast, and how long it will take; texts are shown as they are.
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )

    with (
        Progress(*columns, console=console, transient=False) as progress,
        progress_to(RichSink(progress)),
    ):
        yield


def error_console() -> Console:
    """The console for people: standard error, so that standard output holds results only."""
    return Console(stderr=True)


def show(result: Mapping[str, Any], *, as_json: bool, title: str = "") -> None:
    """Print a result: one JSON object, or a two-column table with a line for each entry."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1, default=str) + "\n")
        return
    rows = [
        (name.replace("_", " "), _lines(value) if isinstance(value, dict) else _named(name, value))
        for name, value in result.items()
    ]
    _print_table(Table(show_header=False, box=None), rows, title)


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print a table with a header."""
    _print_table(Table(*columns), [[_plain(value) for value in row] for row in rows], title)


def _print_table(table: Table, rows: Iterable[Sequence[str]], title: str) -> None:
    """Print a table; texts are shown as they are: `[red]` in a file's name is no markup."""
    table.title, table.title_justify = Text(title, style="table.title") if title else None, "left"
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _lines(values: Mapping[str, Any]) -> str:
    lines = [f"{name.replace('_', ' ')}: {_named(name, value)}" for name, value in values.items()]
    return "\n".join(lines) or "none"


def _named(name: str, value: Any) -> str:
    """Return a value as text; sizes in bytes get a unit."""
    if name.endswith("bytes") and isinstance(value, int):
        return format_bytes(value)
    return _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(inner) for inner in value) or "none"
    return str(value)
