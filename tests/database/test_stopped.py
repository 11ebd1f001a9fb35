"""Updates and compactions that are stopped before a change of a file, anywhere, and begun again."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdm.compute import ComputeConfig
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database

Contents = Callable[[Path], dict[str, bytes]]
INLINE = ComputeConfig(dask="inline")
GONE = Removal(frozenset(["p01.jpg", "p06.jpg"]))
FRACTIONS = [
    *(0.0, 0.5, 0.95),
    *(pytest.param(share, marks=pytest.mark.slow) for share in (0.15, 0.3, 0.7, 0.85, 1.0)),
]
ENDLESS = 10**9


class Stopped(BaseException):
    """No code that handles errors sees it coming."""


class Stopper:
    """Stops the work of this process before its n-th write, rename, link or deletion of a file."""

    left = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.left:
            return
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in ("os.rename", "os.link", "os.remove", "os.rmdir"):
            self.left -= 1
            if not self.left:
                raise Stopped

    def run(self, work: Callable[[], object], step: int) -> int:
        """Run work that is stopped before its step-th change; return how many changes it made."""
        self.left = step
        try:
            work()
        except Stopped:
            return step - 1
        finally:
            made, self.left = step - self.left, 0
        return made


@pytest.fixture(scope="session")
def stopper() -> Stopper:
    found = Stopper()
    sys.addaudithook(found)  # it can never be taken away, and does nothing unless it is told to
    return found


def answers(root: Path, version: int | None = None) -> list[np.ndarray]:
    """Return what a reader of a version gets: neighbors of three kinds."""
    database = RetrievalDatabase.open(str(root), version=version)
    queries = database.embeddings(database.living_ids()[:5])
    found = [
        array
        for exact in (True, False)
        for array in database.search_vectors(queries, 5, exact=exact)
    ]
    return [*found, NeighborTable(database.folder, "train", database.version).all_ids]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_stopped_update_leaves_one_whole_version_and_is_finished_with_equal_bytes(
    tabled: Any,
    tmp_path: Path,
    stopper: Stopper,
    encoded: Callable[..., bytes],
    contents: Contents,
    fraction: float,
) -> None:
    (tabled.photos / "p20.jpg").write_bytes(encoded(103))
    (tabled.photos / "p07.jpg").unlink()
    before = answers(tabled.root)

    def update(root: Path) -> None:
        run_build(update_builder(str(root), GONE), INLINE)

    shutil.copytree(tabled.root, tmp_path / "whole")
    changes = stopper.run(lambda: update(tmp_path / "whole"), ENDLESS)
    assert changes > 40
    after = answers(tmp_path / "whole")
    stopper.run(lambda: update(tabled.root), 1 + round(fraction * (changes - 1)))
    version = RetrievalDatabase.open(str(tabled.root)).version.number
    assert_same(answers(tabled.root), before if version == 3 else after)
    update(tabled.root)
    assert contents(tabled.root) == contents(tmp_path / "whole")
    assert_same(answers(tabled.root, 3), before)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_stopped_compaction_leaves_a_whole_version_and_is_finished_with_equal_bytes(
    tabled: Any, tmp_path: Path, stopper: Stopper, contents: Contents, fraction: float
) -> None:
    tabled.update(GONE)
    before = answers(tabled.root)
    shutil.copytree(tabled.root, tmp_path / "whole")
    changes = stopper.run(lambda: compact_database(str(tmp_path / "whole")), ENDLESS)
    assert changes > 40
    stopper.run(lambda: compact_database(str(tabled.root)), 1 + round(fraction * (changes - 1)))
    assert_same(answers(tabled.root), before)
    assert verify_database(str(tabled.root)) == []
    compact_database(str(tabled.root))
    assert contents(tabled.root) == contents(tmp_path / "whole")


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_stopped_neighbor_build_leaves_the_older_table_and_is_finished_with_equal_bytes(
    tabled: Any, tmp_path: Path, stopper: Stopper, contents: Contents, fraction: float
) -> None:
    before = answers(tabled.root)

    def build(root: Path) -> None:
        type(tabled)(root, tabled.photos, tabled.queries).table("train", 4, exact=True)

    shutil.copytree(tabled.root, tmp_path / "whole")
    changes = stopper.run(lambda: build(tmp_path / "whole"), ENDLESS)
    stopper.run(lambda: build(tabled.root), 1 + round(fraction * (changes - 1)))
    if RetrievalDatabase.open(str(tabled.root)).version.number == 3:
        assert_same(answers(tabled.root), before)
    build(tabled.root)
    assert contents(tabled.root) == contents(tmp_path / "whole")
