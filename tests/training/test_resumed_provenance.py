from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rdm.errors import TrainingError
from rdm.generators.provenance import Provenance, SeenDatabase
from rdm.training.resumed_provenance import require_same_inputs, resumed_provenance

DIGESTS = Provenance(queries_digest="q", latents_digest="a", encoder_digest="e", cache_digest="c")
BEGUN = DIGESTS.model_copy(update={"cache_rows": "r"})
BEGUN_ON_PHOTOGRAPHS = Provenance(source="folder:///photos", photographs_digest="p")


def seen(version: int, earlier_versions: tuple[int, ...] = ()) -> Provenance:
    database = SeenDatabase(
        version=version, source="folder:///photos", earlier_versions=earlier_versions
    )
    return BEGUN.model_copy(update={"database": database})


def test_the_same_inputs_go_on_as_they_are() -> None:
    assert resumed_provenance(seen(3), seen(3), "there") == seen(3)


def test_an_updated_database_is_taken_up_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = resumed_provenance(seen(3), seen(5), "there")
    assert found == seen(5, earlier_versions=(3,))
    assert "version 5 now; until here the run saw 3" in caplog.text


def test_versions_add_up_over_several_updates() -> None:
    found = resumed_provenance(seen(3), seen(5), "there")
    assert resumed_provenance(found, seen(5), "there") == seen(5, earlier_versions=(3,))
    assert resumed_provenance(found, seen(6), "there") == seen(6, earlier_versions=(3, 5))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("queries_digest", "query set"),
        ("latents_digest", "first stage"),
        ("encoder_digest", "encoder"),
        ("cache_digest", "latent cache"),
        ("cache_rows", "number of latents"),
    ],
)
def test_other_inputs_than_the_run_began_with_are_refused(name: str, words: str) -> None:
    with pytest.raises(TrainingError, match=f"trained with another {words}") as caught:
        resumed_provenance(
            seen(3), seen(3).model_copy(update={name: "x"}), "OUT/checkpoints/step-00000010"
        )
    assert caught.value.where == "OUT/checkpoints/step-00000010"


def test_other_photographs_than_the_run_began_with_are_refused() -> None:
    others = BEGUN_ON_PHOTOGRAPHS.model_copy(update={"photographs_digest": "x"})
    with pytest.raises(TrainingError, match="trained with another set of photographs") as caught:
        resumed_provenance(BEGUN_ON_PHOTOGRAPHS, others, "there")
    assert "--source" in caught.value.fix


def test_the_same_photographs_in_another_place_are_the_same() -> None:
    moved = BEGUN_ON_PHOTOGRAPHS.model_copy(update={"source": "folder:///moved"})
    assert resumed_provenance(BEGUN_ON_PHOTOGRAPHS, moved, "there") == moved


def test_a_run_without_a_database_keeps_what_its_objective_says() -> None:
    source = Provenance(source="folder:///photos")
    assert resumed_provenance(source, source, "there") == source


@pytest.mark.parametrize(("recorded", "opened"), [(BEGUN, DIGESTS), (DIGESTS, BEGUN)])
def test_an_input_that_only_one_start_has_is_another_input(
    recorded: Provenance, opened: Provenance
) -> None:
    with pytest.raises(TrainingError, match="number of latents"):
        resumed_provenance(recorded, opened, "there")


class Meeting:
    """The least value among threads that stand for ranks."""

    def __init__(self, num_ranks: int) -> None:
        self.values = []
        self.lock = threading.Lock()
        self.barrier = threading.Barrier(num_ranks)

    def least(self, value: int) -> int:
        with self.lock:
            self.values.append(value)
        self.barrier.wait(10)
        least = min(self.values)
        if self.barrier.wait(10) == 0:
            self.values.clear()
        self.barrier.wait(10)
        return least


def ask(versions: list[int]) -> list[str | None]:
    """Return what each rank is told when they opened these versions of a database."""
    meeting = Meeting(len(versions))

    def rank(version: int) -> str | None:
        try:
            require_same_inputs(seen(version), meeting.least)
        except TrainingError as error:
            return error.what
        return None

    with ThreadPoolExecutor(len(versions)) as pool:
        return list(pool.map(rank, versions))


def test_ranks_that_opened_the_same_version_train() -> None:
    assert ask([4, 4, 4]) == [None, None, None]


@pytest.mark.parametrize("versions", [[4, 5], [5, 4], [4, 4, 5]])
def test_every_rank_stops_where_one_opened_another_version(versions: list[int]) -> None:
    assert ask(versions) == ["the ranks did not open the same inputs"] * len(versions)
