from __future__ import annotations

import pytest

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.sampling import Model, SampleSettings
from rdm.sampling.request import Request
from rdm.sampling.retrieval.look_up import LookUp
from rdm.sampling.seeds import format_seeds, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-3", [0, 1, 2, 3]), ("5", [5]), ("3,5,9", [3, 5, 9]), ("7-8,1", [7, 8, 1])],
)
def test_seeds_are_ranges_and_numbers(text: str, seeds: list[int]) -> None:
    assert list(parse_seeds(text)) == seeds
    assert format_seeds(parse_seeds(text)) == text


@pytest.mark.parametrize("text", ["", "a", "-1", "5-3", "1,,2", str(2**63), "0-99999999"])
def test_what_is_no_list_of_seeds_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_fifty_thousand_seeds_take_no_memory_of_their_own() -> None:
    assert isinstance(parse_seeds("0-49999"), range)


def test_pairs_are_every_text_with_every_seed(model: Model, database: RetrievalDatabase) -> None:
    request = Request(texts=("a", "b"), seeds="3-5", settings=SampleSettings(k=2))
    looked_up = LookUp(request, model.info, {"birds": database})
    assert len(looked_up) == 6
    assert [(one.query.label, one.seed) for one in looked_up.rows(1, 5)] == [
        ("a", 4),
        ("a", 5),
        ("b", 3),
        ("b", 4),
    ]
    assert [len(one.query.neighbor_ids) for one in looked_up.rows(0, 99)] == [2] * 6


def test_nothing_asked_for_is_refused(model: Model, database: RetrievalDatabase) -> None:
    with pytest.raises(UsageError, match="nothing to sample"):
        LookUp(Request(), model.info, {"birds": database})
