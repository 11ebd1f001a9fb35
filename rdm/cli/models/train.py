"""`rdm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DryRunFlag, JsonFlag, SetOption, in_range, show
from rdm.cli.models.figures import cost_figures
from rdm.training.job.hostfile import MASTER_PORT, REMOTE_SHELL, Cluster


def register(app: App) -> None:
    """Add the command."""
    app.command(train)


def train(
    *,
    recipe: Annotated[str, Parameter(help="see `rdm recipes`")],
    out: Annotated[str, Parameter(help="folder of the run")],
    cache: Annotated[str | None, Parameter(help="latent cache, for retrieval recipes")] = None,
    database: Annotated[
        str | None, Parameter(help="retrieval database, for retrieval recipes")
    ] = None,
    source: Annotated[
        str | None, Parameter(help="photographs, for encoder and autoencoder recipes")
    ] = None,
    config: Annotated[Path | None, Parameter(help="a JSON file of settings")] = None,
    set_: SetOption = None,
    hostfile: Annotated[
        Path | None, Parameter(help="machines of the job, `NAME slots=N` per line")
    ] = None,
    master_address: Annotated[
        str | None, Parameter(help="where the others reach the first machine")
    ] = None,
    master_port: Annotated[
        int | None,
        Parameter(
            help="port of the first machine where the ranks meet; by default a free one, or "
            f"{MASTER_PORT} where the "
            "hostfile names several machines",
            validator=in_range(1, 65535),
        ),
    ] = None,
    remote_shell: Annotated[
        str, Parameter(help="how a command is run on a machine")
    ] = REMOTE_SHELL,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Train a recipe under the deepspeed launcher. The same command again resumes from the last
    checkpoint.

    Example: rdm train --recipe rdm-tiny --cache cache --database birds --out run --set
        max_steps=200
    """
    from rdm.recipes import recipe_config
    from rdm.report.run_card import write_run_card
    from rdm.training.config import TrainInputs
    from rdm.training.job.launch import launch_commands, num_ranks, run_training, settled
    from rdm.training.open_run import check_inputs
    from rdm.training.planning.cost import network_cost

    settings = recipe_config(recipe).merged_with_file(config).with_overrides(set_ or [])
    inputs = TrainInputs(out=out, cache=cache, database=database, source=source)
    if hostfile:
        cluster = Cluster.from_hostfile(hostfile, master_address, remote_shell, master_port)
    else:
        cluster = Cluster(master_port=master_port)
    if dry_run:
        # A dry run refuses what the run itself would refuse, and prepares nothing.
        check_inputs(settled(settings, inputs, cluster), inputs)
        ranks = cluster.num_ranks or num_ranks(settings)
        show(
            {
                "out": out,
                "ranks": ranks,
                **{
                    f.name: f.value if json else f.shown
                    for f in cost_figures(settings, network_cost(settings), ranks)
                },
                "commands": launch_commands(settings, cluster, Path(out)),
                "config": settings.model_dump(mode="json"),
            },
            as_json=json,
        )
        return
    trained = run_training(settings, inputs, cluster)
    write_run_card(Path(out))
    show(
        {"model": f"{out}/model", **trained.to_json()},
        as_json=json,
        title="trained",
    )
