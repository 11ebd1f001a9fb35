from __future__ import annotations

import pytest
from pydantic import ValidationError

from rdm.errors import UsageError
from rdm.sampling.request.query_turn import QueryTurn, TurnRecord
from rdm.sampling.request.sample_request import Request, request_of


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "to one text or one picture"),
        ({"text": "a", "image": "b.png"}, "to one text or one picture"),
        ({"image": "b.png", "away": "a"}, "a difference has two texts"),
        ({"away": "a"}, "a difference has two texts"),
        ({"text": " "}, "the text is empty"),
        ({"text": "a" * 2001}, "2,001 characters"),
        ({"text": "a", "fraction": 1.5}, "less than or equal to 1"),
        ({"text": "a", "to": "b"}, "Extra inputs"),
    ],
)
def test_half_a_turn_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        QueryTurn.model_validate(values)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"patches": ["3"]}, "patch"),
        ({"unconditional": True}, "unconditional"),
        ({"texts": ["a"], "unconditional": True}, "unconditional"),
        ({"retrieval": {"include": ["3"]}}, "neighbors"),
        ({}, "nothing"),
    ],
)
def test_only_queries_with_a_vector_of_their_own_are_turned(
    asked: dict[str, object], kind: str
) -> None:
    with pytest.raises(UsageError, match=f"not {kind}"):
        request_of({**asked, "turn": {"text": "b"}})


def test_a_turn_survives_its_own_json() -> None:
    request = Request(texts=("a",), turn=QueryTurn(text="b", away="c", fraction=0.25))
    assert request_of(request.model_dump(mode="json")) == request


def test_a_turn_is_told_in_words() -> None:
    assert str(TurnRecord(text="snow", away="sun", fraction=0.25)) == (
        "turned 0.25 towards snow and away from sun"
    )
    assert str(TurnRecord(image="b.png", fraction=0.5)) == "turned 0.5 towards b.png"
