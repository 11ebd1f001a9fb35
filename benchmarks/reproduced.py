"""100 pictures of `assets://rdm-64`, each drawn again: alone, elsewhere in a batch, after a kill.

A process draws them and is killed on the way; the same command in another process draws the rest.
Compared with these, to the bit, are one run that nobody interrupts, `rdm reproduce` of each picture
in this process, alone in its batch, and a run that draws them in the opposite order, so that each
has other neighbors and mostly another row in its batch. A few steps, because bits depend on all of
them alike; one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.drawing_costs import small_database
from rdm.database import RetrievalDatabase
from rdm.generators.model_folder import open_model
from rdm.sampling.output import JOURNAL
from rdm.sampling.recipe.picture_file import Picture, read_picture
from rdm.sampling.reproduce import reproduce

TEXTS, SEEDS = ("an owl", "a duck on water", "a red bird", "a photograph"), 25
STEPS = int(os.environ.get("RDM_BENCHMARK_STEPS", "4"))
KILL_AFTER = 30
_MODEL = "assets://rdm-64"


def run() -> str:
    """Return the counts of identical pictures in words."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        root = small_database(Path(directory))
        killed, whole, reverse = (Path(directory) / name for name in ("killed", "whole", "reverse"))
        order = range(SEEDS)
        stood = _killed(_command(root, killed, order))
        for out, seeds in ((killed, order), (whole, order), (reverse, reversed(order))):
            subprocess.run(_command(root, out, seeds), check=True, capture_output=True, env=_env())
        drawn = _pictures(killed)
        model, birds = open_model(_MODEL, torch.device("cpu")), RetrievalDatabase.open(root)
        again = sum(reproduce(one, model, [birds])[1].identical for one in drawn.values())
        words = [
            f"{again} of {len(drawn)} reproduced alone in another process",
            f"{_alike(drawn, whole)} as in a run without the kill after {stood}",
            f"{_alike(drawn, reverse)} as in the opposite order",
        ]
    return "; ".join(words)


def _command(root: str, out: Path, seeds: Iterable[int]) -> list[str]:
    texts = [part for text in TEXTS for part in ("--text", text)]
    numbers = ",".join(map(str, seeds))
    rdm = str(Path(sys.executable).with_name("rdm"))
    asked = ["--seeds", numbers, "--set", f"num_steps={STEPS}", "--device", "cpu"]
    return [rdm, "sample", "--model", _MODEL, "--database", root, *texts, *asked, "--out", str(out)]


def _env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _killed(command: list[str]) -> int:
    """Start a command, kill it when it has written enough, and return how many pictures stand."""
    journal = Path(command[-1]) / JOURNAL
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_env()
    )
    while process.poll() is None and _lines(journal) < KILL_AFTER:
        time.sleep(0.01)
    process.kill()
    process.wait()
    return _lines(journal)


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _pictures(folder: Path) -> dict[tuple[str, int], Picture]:
    """Return the pictures of a folder by text and seed."""
    found = {}
    for path in sorted(folder.glob("[0-9]*.png")):
        picture = read_picture(path)
        assert picture.record.query is not None
        assert picture.record.seed is not None
        found[picture.record.query.label, picture.record.seed] = picture
    return found


def _alike(drawn: dict[tuple[str, int], Picture], folder: Path) -> int:
    """Return how many pictures have the same pixels in another folder."""
    others = _pictures(folder)
    return sum(
        others[key].record.pixels_sha256 == picture.record.pixels_sha256
        for key, picture in drawn.items()
    )


if __name__ == "__main__":
    print(run())
