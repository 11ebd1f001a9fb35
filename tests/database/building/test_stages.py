"""One order of stages, whoever runs them; and the plan that was shown is the one that is
executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rdm.compute import ComputeConfig, compute_pool
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.building.stages import ResultT, run_stages

INLINE = ComputeConfig(dask="inline")
ORDER = ["ingest", "patchify", "embed", "index", "repair", "commit"]


class Recorder:
    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, work: Callable[[], ResultT], /) -> ResultT:
        self.names.append(name)
        return work()


def test_stages_run_in_one_order_through_a_runner(living_root: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "p03.jpg").unlink()
    ran = Recorder()
    result = run_build(update_builder(str(living_root)), INLINE, run=ran)
    assert (ran.names, result.version, result.photographs) == (ORDER, 2, 11)


def test_where_nothing_changed_no_stage_runs(living_root: Path) -> None:
    ran = Recorder()
    assert run_build(update_builder(str(living_root)), INLINE, run=ran).unchanged
    assert ran.names == []


def test_plan_that_was_shown_is_executed(living_root: Path, tmp_path: Path) -> None:
    builder = update_builder(str(living_root))
    (tmp_path / "photos" / "p03.jpg").unlink()
    planned = builder.plan()
    with builder.writing(planned) as plan:
        assert plan is planned


def test_plan_of_another_version_is_made_again(living_root: Path, tmp_path: Path) -> None:
    builder = update_builder(str(living_root))
    (tmp_path / "photos" / "p03.jpg").unlink()
    planned = builder.plan()
    run_build(update_builder(str(living_root)), INLINE)
    with builder.writing(planned) as plan, compute_pool(INLINE):
        assert plan.is_current
    assert run_build(builder, INLINE, planned=planned).version == 2


def test_a_plan_makes_its_own_version_whatever_the_source_becomes(
    living_root: Path, tmp_path: Path
) -> None:
    builder = update_builder(str(living_root))
    (tmp_path / "photos" / "p03.jpg").unlink()
    with builder.writing() as plan, compute_pool(INLINE) as pool:
        (tmp_path / "photos" / "p04.jpg").unlink()
        assert run_stages(plan, pool).photographs == 11
