"""Arguments of a call become parts of a request, and errors name the field that is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rdm.errors import UsageError
from rdm.sampling.pipelines.call_arguments import negative_of, start_of, turn_of, weighted
from rdm.sampling.request.sample_request import NegativeRequest, WeightedDatabase


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda: start_of({"strenght": 0.5}, (), None, None, {}), "start.strenght"),
        (lambda: start_of(None, ["a.png"], 7.0, None, {}), "start.strength"),
        (lambda: turn_of({"text": "a bird", "fractoin": 0.5}, {}), "turn.fractoin"),
        (lambda: negative_of("fog", (), -1.0), "retrieval.negative.scale"),
        (lambda: negative_of(None, (), 2.0), "retrieval.negative: a negative names texts"),
        (lambda: weighted({"birds": 1.0, "bees": -1.0}), "retrieval.databases.1.weight"),
    ],
)
def test_a_wrong_argument_is_named_by_its_field(ask: Callable[[], object], field: str) -> None:
    with pytest.raises(UsageError) as raised:
        ask()
    assert field in raised.value.what
    assert raised.value.where == "RetrievalPipeline"


def test_nothing_asked_is_no_part_of_the_request() -> None:
    assert start_of(None, (), None, None, {}) is None
    assert turn_of(None, {}) is None
    assert negative_of(None, (), None) is None
    assert weighted(None) == []


def test_arguments_become_the_requests_own_records() -> None:
    assert negative_of("fog", [3], 1.5) == NegativeRequest(
        texts=("fog",), patches=("3",), scale=1.5
    )
    assert weighted({"birds": 2.0}) == [WeightedDatabase(name="birds", weight=2.0)]
