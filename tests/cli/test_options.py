"""Every command: help with an example, and numbers that make no sense are usage errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cyclopts import App

from rdm.cli.main import build_app, run


def commands(app: App, path: str = "") -> Iterator[tuple[str, App]]:
    """Yield every command with its words, such as `database build`."""
    for name in app:
        command, words = app[name], f"{path} {name}".strip()
        if command.default_command is not None and not name.startswith("-"):
            yield words, command
        if not name.startswith("-"):
            yield from commands(command, words)


COMMANDS = dict(commands(build_app()))


@pytest.mark.parametrize("words", COMMANDS)
def test_help_of_every_command_has_an_example_of_it(words: str) -> None:
    assert f"Example: rdm {words}" in COMMANDS[words].help


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_takes_json(words: str) -> None:
    assert "--json" in [
        name
        for argument in COMMANDS[words].assemble_argument_collection()
        for name in argument.names
    ]


@pytest.mark.parametrize(
    "command",
    [
        "database search --root x --text owl -k 0",
        "database search --root x --text owl -k -2",
        "database inspect --root x --patch 1 --k -3",
        "database build --root x --source folder:///x --dry-run --trial -5",
        "database build --root x --source folder:///x --dry-run --price-per-hour -1",
        "database update --root x --dry-run --price-per-hour nan",
        "sample --model x --unconditional -k 0",
        "sample --model x --unconditional --top-m 0",
    ],
)
def test_number_that_makes_no_sense_is_a_usage_error_that_names_the_option(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(command.split()) == 2
    assert f"for {command.split()[-2]}. Must be" in " ".join(
        capsys.readouterr().err.replace("│", "").split()
    )
