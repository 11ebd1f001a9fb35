"""`rdm recipes`."""

from __future__ import annotations

from cyclopts import App

from rdm.cli.console import JsonFlag, show, show_rows


def register(app: App) -> None:
    """Add the command."""
    app.command(recipes)


def recipes(*, json: JsonFlag = False) -> None:
    """List the training recipes."""
    from rdm.training.recipes import RECIPES

    if json:
        show(
            {
                name: {"summary": recipe.summary, "config": recipe.config().model_dump(mode="json")}
                for name, recipe in RECIPES.items()
            },
            as_json=True,
        )
        return
    rows = [
        [name, recipe.summary, (config := recipe.config()).max_steps, config.batch_size]
        for name, recipe in RECIPES.items()
    ]
    show_rows(["recipe", "what", "steps", "batch"], rows)
