"""The package's public names: each is there, and documentation and notebooks use no others."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rdm

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])


@pytest.mark.parametrize("name", rdm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(rdm, name) is not None


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rdm.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pyarrow", "pydantic")
    code = f"import sys, rdm; sys.exit(any(name in sys.modules for name in {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def python_of_page(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def python_of_notebook(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^[%!].*$", "", cell, flags=re.MULTILINE) for cell in code]


def imports_of(code: str) -> set[str]:
    """Return what a piece of code imports of the package: `rdm`, or a module below it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "rdm"}


def test_pages_import_nothing_deeper() -> None:
    for page in PAGES:
        for code in python_of_page(page):
            assert imports_of(code) <= {"rdm"}, page


def test_notebooks_import_nothing_deeper() -> None:
    notebooks = sorted(ROOT.glob("notebooks/*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        used = set().union(*(imports_of(code) for code in python_of_notebook(notebook)))
        assert used == {"rdm"}, notebook
