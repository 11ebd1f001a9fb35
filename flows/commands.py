"""Commands that the flows add to `rdm`: quickstart and deploy."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from rdm.cli.console import DryRunFlag, JsonFlag, show

DONE = "quickstart.json"


def register(app: App) -> None:
    """Add the commands."""
    app.command(quickstart)
    app.command(deploy)


def quickstart(
    *,
    root: Annotated[Path, Parameter(help="an empty folder, or one where a quickstart was interrupted")],
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", negative="", help="key=value of the recipe rdm-tiny, e.g. max_steps=200"),
    ] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Build a database from embedded photographs, train on it, sample, measure, and write report.html.

    At most ten minutes on two cores. Interrupted, the same command resumes; complete, it says so in seconds.

    Example: rdm quickstart --root quickstart
    """
    prefect_defaults()
    from flows.quickstart import Layout, QuickstartConfig
    from flows.quickstart import quickstart as quickstart_flow
    from rdm.config import digest_json
    from rdm.storage import Folder
    from rdm.training.recipes import recipe_config

    config = QuickstartConfig(train=tuple(set_ or []))
    recipe = recipe_config("rdm-tiny").with_overrides(config.train)
    layout, folder = Layout(root), Folder(root)
    key = digest_json([config.model_dump(mode="json"), recipe.model_dump(mode="json")])
    if dry_run:
        show(
            {"root": root, "would": "build, train, sample, measure, report", "config": recipe.model_dump(mode="json")},
            as_json=json,
        )
        return
    if not (folder.exists(DONE) and folder.read_json(DONE)["key"] == key and layout.report.is_file()):
        started = time.monotonic()
        result = quickstart_flow(root=root, config=config)
        folder.write_json(
            DONE,
            {
                "key": key,
                "seconds": time.monotonic() - started,
                "held_out": result["held_out"],
                "metrics": result["metrics"],
            },
        )
    show(_summary(layout, folder.read_json(DONE)), as_json=json, title="quickstart")


def deploy(
    *,
    prefect_file: Annotated[Path, Parameter(help="the deployments")] = Path("infra/prefect.yaml"),
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> int:
    """Create missing work pools and queues, and deploy every flow to the Prefect server of PREFECT_API_URL.

    The runs will work in the folder in which this command runs.

    Example: rdm deploy --dry-run
    """
    import subprocess

    from flows.work_pools import create_work_pools, read_deployments_file

    pools, deployments = read_deployments_file(prefect_file)
    if dry_run:
        show(
            {
                "would": "deploy",
                "work_pools": [pool.name for pool in pools],
                "working_directory": Path.cwd(),
                "entrypoints": [deployment["entrypoint"] for deployment in deployments],
            },
            as_json=json,
        )
        return 0
    create_work_pools(pools)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(prefect_file), "--all"]
    # Standard output holds this command's result only, so what Prefect says goes to standard error.
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode
    if code == 0:
        show(
            {
                "work_pools": [pool.name for pool in pools],
                "working_directory": Path.cwd(),
                "next": [f"prefect worker start --pool {pool.name}" for pool in pools],
            },
            as_json=json,
            title="deployed",
        )
    return code


def prefect_defaults() -> None:
    """Set what a temporary Prefect server needs here, unless the user has; call it before Prefect is imported."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "rdm",
        "PREFECT_CLI_COLORS": "false",
    }.items():
        os.environ.setdefault(name, value)


def _summary(layout: Any, done: dict[str, Any]) -> dict[str, Any]:
    losses = {
        name: f"{interval['mean']:.4f} +- {interval['half_width']:.4f}"
        for name, interval in done["held_out"]["losses"].items()
    }
    return {
        "report": layout.report.resolve(),
        "database": layout.database,
        "model": layout.run / "model",
        "samples": layout.samples,
        "held_out_loss": losses,
        "seconds": round(done["seconds"], 1),
    }
