from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig
from rdm.database.changes import Removal
from rdm.database.jobs import run_build, update_builder, update_plan
from rdm.errors import DatabaseError, SourceError


def lose(root: Path, count: int) -> None:
    for path in sorted((root.parent / "photos").iterdir())[:count]:
        path.unlink()


def test_source_that_lost_most_photographs_is_refused_by_plan_and_update(living_root: Path) -> None:
    lose(living_root, 11)
    for run in (update_plan, lambda builder: run_build(builder, ComputeConfig(dask="inline"))):
        with pytest.raises(SourceError, match="11 of the 12 photographs in the database are no longer") as caught:
            run(update_builder(str(living_root)))
        assert "--set max_vanished_share=1" in caught.value.fix


def test_losing_most_photographs_can_be_meant_and_is_asked_each_time(living_root: Path) -> None:
    lose(living_root, 10)
    builder = update_builder(str(living_root), overrides=["max_vanished_share=1"])
    assert run_build(builder, ComputeConfig(dask="inline"))["photographs"] == 2
    assert update_builder(str(living_root)).config.max_vanished_share == 0.5


def test_few_photographs_may_all_vanish_beside_new_ones(living_root: Path) -> None:
    lose(living_root, 9)
    assert update_plan(update_builder(str(living_root)))["gone"] == 9


def test_photographs_removed_on_request_have_not_vanished(living_root: Path) -> None:
    asked = Removal(frozenset(f"p{number:02d}.jpg" for number in range(2)))
    lose(living_root, 11)
    assert update_plan(update_builder(str(living_root), asked))["gone"] == 11


def test_half_of_the_photographs_may_vanish(root: Path, build: Any, encoded: Callable[..., bytes]) -> None:
    for number in range(12, 20):
        (root.parent / "photos" / f"p{number}.jpg").write_bytes(encoded(number))
    build(root, root.parent / "photos")
    lose(root, 10)
    assert update_plan(update_builder(str(root)))["gone"] == 10


def test_removal_of_everything_is_refused_by_the_plan(living_root: Path) -> None:
    with pytest.raises(DatabaseError, match="no patch would be left"):
        update_plan(update_builder(str(living_root), Removal(where="width > 0")))
