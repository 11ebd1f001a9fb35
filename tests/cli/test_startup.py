"""Commands load nothing that they do not use: what each may not import, asked of a process of its
own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from random_model import write_random_model

from rdm.database import RetrievalDatabase

Command = Callable[..., tuple[int, dict, str]]
HEAVY = {
    "numpy",
    "pyarrow",
    "torch",
    "faiss",
    "dask",
    "prefect",
    "pandas",
    "matplotlib",
    "transformers",
    "diffusers",
}
LIBRARIES = {
    "distributed",
    "deepspeed",
    "diffusers",
    "img2dataset",
    "matplotlib",
    "prefect",
    "torchvision",
}
NETWORKS = LIBRARIES | {"transformers", "torch._dynamo", "torch._inductor", "open_clip", "jinja2"}
PROGRAM = """
import sys
from rdm.cli.main import run
code = run(sys.argv[2:])
print("LOADED", code, *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


def loaded(forbidden: set[str], *arguments: object) -> list[str]:
    """Return the exit code of a command, and those of the modules that it loaded."""
    words = [sys.executable, "-c", PROGRAM, ",".join(forbidden), *map(str, arguments)]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    return found.stdout.split("LOADED", 1)[1].split()


def test_help_loads_no_heavy_library() -> None:
    program = (
        f"import sys; from rdm.cli.main import build_app; build_app(); print(*({HEAVY} "
        "& set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


@pytest.mark.parametrize("command", ["sample", "evaluate", "database search"])
def test_help_of_a_command_loads_no_heavy_library(command: str) -> None:
    assert loaded(HEAVY, *command.split(), "--help") == ["0"]


def test_the_state_of_a_database_is_told_without_networks(root: Path) -> None:
    assert loaded(NETWORKS | {"torch", "numba", "dask"}, "database", "status", "--root", root) == [
        "0"
    ]


@pytest.fixture
def embedded(photos: Path, tmp_path: Path, rdm_database: Command) -> Path:
    """A database of the embedded encoder, which a process of its own can open."""
    settings = ("--set", "crop.frame_size=40", "--set", "crop.patch_size=24", "--dask", "inline")
    assert (
        rdm_database(
            "build", "--root", tmp_path / "db", "--source", f"folder://{photos}", *settings
        )[0]
        == 0
    )
    return tmp_path / "db"


@pytest.mark.slow
def test_a_search_in_words_loads_no_more_than_its_text_tower(embedded: Path) -> None:
    forbidden = NETWORKS | {"efficientnet_lite_pytorch", "dask", "pyarrow.dataset"}
    assert loaded(
        forbidden, "database", "search", "--root", embedded, "--text", "owl", "-k", 2
    ) == ["0"]


@pytest.mark.slow
def test_sampling_loads_neither_training_nor_clusters(embedded: Path, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "model", RetrievalDatabase.open(str(embedded)))
    forbidden = {"deepspeed", "prefect", "matplotlib", "img2dataset", "distributed", "dask"}
    ask = (
        "--model",
        model,
        "--database",
        embedded,
        "--text",
        "owl",
        "--seeds",
        0,
        "--out",
        tmp_path / "out",
    )
    assert loaded(forbidden, "sample", *ask, "--set", "num_steps=1") == ["0"]
