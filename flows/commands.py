"""Commands that the flows add to `rdm`: quickstart and deploy."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from rdm.cli import doctor
from rdm.cli.console import DryRunFlag, JsonFlag, show
from rdm.errors import StorageError

if TYPE_CHECKING:
    from flows.quickstart_layout import Layout, QuickstartConfig
    from flows.quickstart_result import QuickstartResult

DONE = "quickstart.json"
LOCK = ".quickstart.lock"


def register(app: App) -> None:
    """Add the commands, and to `rdm doctor` what would stop flows here."""
    app.command(quickstart)
    app.command(deploy)
    doctor.add_check("flows", _check_flows)


def quickstart(
    *,
    root: Annotated[
        Path, Parameter(help="an empty folder, or one where a quickstart was interrupted")
    ],
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", negative="", help="key=value of the training, e.g. max_steps=200"),
    ] = None,
    from_scratch: Annotated[
        bool, Parameter(negative="", help="train a smaller model, rdm-tiny, from random weights")
    ] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Build a database from embedded photographs, fine-tune the model that ships, sample, measure,
    write report.html.

    It brings its own Prefect server, below the root: settings, profiles and servers of yours are
    left alone.

    At most ten minutes on two cores. Interrupted, the same command resumes; complete, it says so in
    seconds.

    Example: rdm quickstart --root quickstart
    """
    from flows.quickstart_layout import OF_FINE_TUNED, Layout, QuickstartConfig
    from flows.quickstart_result import QuickstartResult
    from rdm.config import digest_json
    from rdm.recipes import recipe_config
    from rdm.report.quickstart.showcase import ShowcaseConfig
    from rdm.storage import Folder

    showcase = ShowcaseConfig() if from_scratch else ShowcaseConfig(settings=OF_FINE_TUNED)
    config = QuickstartConfig(from_scratch=from_scratch, train=tuple(set_ or []), showcase=showcase)
    recipe = recipe_config(config.recipe).with_overrides(config.overrides)
    folder = Folder(root)
    layout = Layout(Path(folder.path()))
    # The recipe as it resolves, too: a release that changes it runs the quickstart again.
    key = digest_json([config.model_dump(mode="json"), recipe.model_dump(mode="json")])
    if dry_run:
        show(
            {
                "root": root,
                "would": "build, train, sample, measure, report",
                "config": recipe.model_dump(mode="json"),
            },
            as_json=json,
        )
        return
    if not (
        folder.exists(DONE) and folder.read_json(DONE)["key"] == key and layout.report.is_file()
    ):
        folder.write_json(DONE, _run_quickstart(layout, config, key).to_json())
    done = QuickstartResult.model_validate(folder.read_json(DONE))
    show(_summary(layout, done), as_json=json, title="quickstart")


def _run_quickstart(layout: Layout, config: QuickstartConfig, key: str) -> QuickstartResult:
    """Run the flow on a server of its own below an absolute root."""
    from flows.quickstart_result import QuickstartResult
    from flows.server import own_server
    from rdm.storage.locks import lock_file

    root = layout.root
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder cannot be made: {error.strerror}",
            where=root,
            fix="give --root a folder that you may write",
        ) from error

    # The lock is taken first: two quickstarts would share one server's data.
    started = time.monotonic()
    with lock_file(root / LOCK, "runs a quickstart in this folder"), own_server(layout.prefect):
        from flows.quickstart import quickstart as quickstart_flow

        result = quickstart_flow(root=root, config=config)
    return QuickstartResult(
        key=key,
        seconds=time.monotonic() - started,
        held_out=result.held_out,
        metrics=result.metrics,
    )


def deploy(
    *,
    prefect_file: Annotated[Path, Parameter(help="the deployments")] = Path("infra/prefect.yaml"),
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> int:
    """Create missing work pools and queues, and deploy every flow to the Prefect server of
    PREFECT_API_URL.

    The runs will work in the folder in which this command runs.

    Example: rdm deploy --dry-run
    """
    import subprocess

    from flows.api import load_settings

    load_settings()  # refused in three lines, before an import fails in many
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
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--prefect-file",
        str(prefect_file),
        "--all",
    ]
    # Standard output holds this command's result only, so what Prefect says goes to standard error.
    code = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
    ).returncode
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


def _check_flows() -> tuple[bool, str, str]:
    from flows.api import check_flows

    return check_flows()


def _summary(layout: Layout, done: QuickstartResult) -> dict[str, object]:
    """Return what people are told of a finished quickstart."""
    held_out = done.held_out.losses if done.held_out is not None else {}
    losses = {
        name: f"{interval.mean:.4f} +- {interval.half_width:.4f}"
        for name, interval in held_out.items()
    }
    return {
        "report": layout.report.resolve(),
        "database": layout.database,
        "model": layout.run / "model",
        "samples": layout.samples,
        "held_out_loss": losses,
        "seconds": round(done.seconds, 1),
    }
