"""`rdm status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from rdm.cli.console import JsonFlag, in_range, show

if TYPE_CHECKING:
    from rdm.training.job.status import RunStatus


def register(app: App) -> None:
    """Add the command."""
    app.command(status)


def status(
    *,
    run: Annotated[Path, Parameter(help="folder of the run, as given to `rdm train --out`")],
    watch: Annotated[
        bool, Parameter(negative="", help="look again every few seconds until the run has ended")
    ] = False,
    every: Annotated[
        float, Parameter(help="seconds between two looks", validator=in_range(0))
    ] = 5.0,
    json: JsonFlag = False,
) -> None:
    """Show how a training run is doing: progress, time left, loss, last checkpoint and health.

    Example: rdm status --run run --watch
    """
    from rdm.training.job.status import read_status

    while True:
        found = read_status(run)
        _show(found, as_json=json)
        if not watch or found.health in ("finished", "failed", "stopped"):
            return
        time.sleep(every)


def _show(found: RunStatus, *, as_json: bool) -> None:
    if as_json:
        show(found.model_dump(mode="json"), as_json=True)
        return

    left = "unknown" if found.seconds_left is None else f"{found.seconds_left:.0f} s"
    rows = {
        "health": found.health + (f": {found.error}" if found.error else ""),
        "step": f"{found.step} of {found.max_steps} "
        f"({100 * found.step / found.max_steps:.0f}%), left {left}",
        "loss": f"{found.sparkline} {found.loss:.4f}" if found.loss is not None else "none yet",
        "samples per second": found.samples_per_second,
        "model GFLOP/s": _speed(found),
        "learning rate": found.learning_rate,
        "gradient norm": found.gradient_norm,
        "last checkpoint": found.checkpoint_step,
        "best checkpoint": found.best_step,
        "newest grid": found.grid,
    }

    shown = {name: "none" if value is None else value for name, value in rows.items()}
    show(shown, as_json=False, title=f"{found.recipe} in {found.out}")


def _speed(found: RunStatus) -> str | None:
    if found.model_flops_per_second is None:
        return None
    share = (
        ""
        if found.model_flop_utilization is None
        else f", {found.model_flop_utilization:.0%} of the peak"
    )
    return f"{found.model_flops_per_second / 1e9:,.1f}{share}"
