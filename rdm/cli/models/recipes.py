"""`rdm recipes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from cyclopts import App, Parameter

from rdm.cli.console import JsonFlag, SetOption, in_range, show, show_rows
from rdm.cli.models.figures import as_values, cost_figures, throughput_figures


def register(app: App) -> None:
    """Add the command."""
    app.command(recipes)


def recipes(
    name: Annotated[str | None, Parameter(help="one recipe, in full")] = None,
    *,
    set_: SetOption = None,
    ranks: Annotated[int, Parameter(help="ranks that share the work, one per device")] = 1,
    device: Annotated[
        str | None, Parameter(help="whose peak the expected throughput is a share of")
    ] = None,
    utilization: Annotated[float | None, Parameter(help="the assumed share of that peak")] = None,
    measure: Annotated[
        bool, Parameter(negative="", help="time a few passes of the network here instead")
    ] = False,
    batch: Annotated[int, Parameter(help="samples of a measured pass", validator=in_range(1))] = 4,
    json: JsonFlag = False,
) -> None:
    """List the training recipes, or show one with what it costs.

    Example: rdm recipes rdm-imagenet --device h200 --utilization 0.45
    """
    from rdm.recipes import RECIPES, recipe_config
    from rdm.training.planning.cost import network_cost
    from rdm.training.planning.throughput import (
        DEFAULT_DEVICE,
        DEFAULT_UTILIZATION,
        expected_throughput,
        measured_throughput,
    )

    if name is None:
        _show_list(as_json=json)
        return

    config = recipe_config(name).with_overrides(set_ or [])
    cost = network_cost(config)
    figures = cost_figures(config, cost, ranks)
    basis = ""

    # An expectation by default; a measurement only where it is asked for, as it takes a while.
    if cost is not None:
        share = DEFAULT_UTILIZATION if utilization is None else utilization
        throughput = (
            measured_throughput(config, cost, batch)
            if measure
            else expected_throughput(cost, device or DEFAULT_DEVICE, share)
        )
        figures += throughput_figures(config, cost, throughput)
        basis = throughput.basis

    # All settings, so that a recipe can be written down whole.
    settings = config.model_dump(mode="json")
    if json:
        named = {"recipe": name, "summary": RECIPES[name].summary}
        show(
            {**named, "cost": as_values(figures), "throughput_basis": basis, "config": settings},
            as_json=True,
        )
        return
    if figures:
        rows = [[figure.name.replace("_", " "), figure.shown, figure.meaning] for figure in figures]
        show_rows(["figure", "value", "what it is"], rows, title=name)
    show_rows(["setting", "value"], list(_flat(settings)))


def _show_list(*, as_json: bool) -> None:
    """Show every recipe with the counted costs that are kept, so that nothing has to be counted."""
    from rdm.recipes import RECIPES
    from rdm.recipes.costs import kept_costs

    # Kept costs: to count them would build every network.
    costs, described = kept_costs(), {}
    for name, recipe in RECIPES.items():
        config = recipe.config()
        figures = cost_figures(config, costs[name])
        described[name] = (recipe, config, {figure.name: figure for figure in figures})

    if as_json:
        show(
            {
                name: {
                    "summary": recipe.summary,
                    "cost": as_values(list(figures.values())),
                    "config": config.model_dump(mode="json"),
                }
                for name, (recipe, config, figures) in described.items()
            },
            as_json=True,
        )
        return

    # People see the figures that a choice depends on.
    wanted = ("parameters", "forward_flops", "step_flops", "memory_bytes")
    rows = [
        [name, recipe.summary, config.max_steps, config.batch_size]
        + [figures[key].shown if key in figures else "" for key in wanted]
        for name, (recipe, config, figures) in described.items()
    ]
    columns = [
        "recipe",
        "what",
        "steps",
        "batch",
        "parameters",
        "forward",
        "training step",
        "memory",
    ]
    show_rows(columns, rows)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings as `--set` names them."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
