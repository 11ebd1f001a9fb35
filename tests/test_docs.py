"""Commands of the documentation: `rdm` has each, with the options and settings that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rdm.cli.main import build_app
from rdm.generators.sample_settings import SampleSettings
from rdm.recipes import RECIPES, recipe_config
from rdm.training.data.text_annotation import TextAnnotationConfig
from rdm.training.presets import cache_config

ROOT = Path(__file__).parent.parent
APP = build_app()
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def commands_of(page: Path) -> list[str]:
    """Return the commands in a page's blocks of code, those with a gap `...` left out."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("rdm ") and " ... " not in line]


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


def test_the_documentation_has_commands() -> None:
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_and_its_settings_exist(command: str) -> None:
    tokens = shlex.split(command, comments=True)[1:]
    function, bound, _ = APP.parse_args(tokens, exit_on_error=False, print_error=False)
    given, settings = bound.arguments, bound.arguments.get("set_") or []
    if function.__name__ == "train":
        recipe_config(given["recipe"]).with_overrides(settings)
    elif function.__name__ == "sample":
        SampleSettings().with_overrides(settings)
    elif function.__name__ == "annotate":
        TextAnnotationConfig().with_overrides(settings)
    elif tokens[:2] == ["cache", "build"]:
        cache_config("folder:///training").with_overrides(settings)


def test_every_recipe_is_documented() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    families = re.findall(r"`autoencoder-\{kl,vq\}-f\{4,8,16\}-official`", text)
    missing = [name for name in RECIPES if f"`{name}`" not in text and not name.endswith("l")]
    assert families
    assert not missing
