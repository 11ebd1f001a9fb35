from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.sampling import Model, SampleSettings
from rdm.sampling.request.sample_request import Request, read_request, request_of
from rdm.sampling.request.seeds import format_seeds, parse_seeds
from rdm.sampling.retrieval.look_up import LookUp


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


def valid() -> dict[str, Any]:
    retrieval = {
        "databases": [{"name": "birds", "weight": 2, "version": 3}, {"name": "b"}],
        "pool": 9,
        "tokens": "query+neighbors",
        "include": [3, "b:4"],
        "exclude": {"patches": [5], "photographs": ["p"], "authors": ["a"], "licenses": ["l"]},
        "weights": {"3": 0, "b:4": 4},
        "negative": {"texts": ["a dog"], "patches": [1], "scale": 0.5},
    }
    return {
        "model": "m",
        "texts": ["an owl"],
        "images": ["a.png"],
        "classes": ["tit"],
        "patches": [7],
        "unconditional": True,
        "seeds": [1, 2, 3, 7],
        "retrieval": retrieval,
        "settings": {"k": 5},
    }


def test_a_request_survives_json_whole() -> None:
    request = request_of(valid())
    assert request.seeds == "1-3,7"
    assert request.retrieval.include == ("3", "b:4")
    assert request_of(json.loads(request.model_dump_json())) == request


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"texts": [""]}, "texts.0: the text is empty"),
        ({"texts": [" \n"]}, "texts.0: the text is empty"),
        ({"texts": ["x" * 10_000]}, "texts.0: the text has 10,000 characters"),
        ({"classes": [""]}, "classes.0: the text is empty"),
        ({"text": "an owl"}, "a request has no field 'text'"),
        ({"retrieval": {"weight": {}}}, "a request has no field 'retrieval.weight'"),
        ({"settings": {"steps": 3}}, "a request has no field 'settings.steps'"),
        ({"format": "rdm.request/2"}, "the request has the format 'rdm.request/2'"),
        ({"format": 1}, "the request has the format 1"),
        ({"seeds": "many"}, "seeds: 'many' is no list of seeds"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1.5]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"patches": [-1]}, "patches.0: '-1' is no patch"),
        ({"patches": ["birds:"]}, "patches.0: 'birds:' is no patch"),
        ({"patches": [":3"]}, "patches.0: ':3' is no patch"),
        ({"patches": [10**30]}, "patches.0"),
        ({"patches": [True]}, "patches.0"),
        ({"patches": ["٣"]}, "patches.0"),
        ({"retrieval": {"pool": 3}}, "a pool of 3 neighbors is smaller than k = 4"),
        ({"retrieval": {"weights": {"3": 4.5}}}, "retrieval.weights.3"),
        ({"retrieval": {"weights": {"3": -1}}}, "retrieval.weights.3"),
        ({"retrieval": {"weights": {"3": float("nan")}}}, "retrieval.weights.3"),
        ({"retrieval": {"include": [3, 3]}}, "a patch is included twice"),
        ({"retrieval": {"databases": [{"name": "a", "weight": 0}]}}, "weights of all databases"),
        ({"retrieval": {"databases": [{"name": "a"}, {"name": "a"}]}}, "named twice"),
        (
            {"retrieval": {"databases": [{"name": "a", "weight": float("inf")}]}},
            "retrieval.databases.0.weight",
        ),
        ({"retrieval": {"negative": {}}}, "a negative names texts or patches"),
        (
            {"retrieval": {"negative": {"texts": ["x"]}}, "settings": {"guidance_scale": 1}},
            "a negative acts through guidance",
        ),
        ({"centers": 0}, "centers"),
        ({"top_m": 0}, "top_m"),
        ({"retrieval": None}, "retrieval"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_no_request_is_refused_by_the_name_of_its_field(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError) as error:
        request_of({"texts": ["an owl"], **change}, "a.json")
    assert error.value.what.startswith(named) or named in error.value.what
    assert error.value.where == "a.json"
    assert error.value.fix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the request is not JSON"),
        (b"\xff\xfe", "the request is not JSON"),
        (b"[1]", "the request is no JSON object"),
        (b"[" * 100_000, "the request is not JSON"),
        (b'{"texts": ["a"], "later": 1}', "no field 'later'"),
    ],
)
def test_a_file_that_is_no_request_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        read_request(path)
    assert error.value.where == str(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the request cannot be read"):
        read_request(tmp_path / "request.json")
