"""Queries between two queries, and along the difference of two texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rdm.database import RetrievalDatabase
from rdm.encoders import normalize
from rdm.errors import SourceError, UsageError
from rdm.sampling import Model, SampleSettings
from rdm.sampling.request.query_turn import QueryTurn
from rdm.sampling.request.sample_request import Request, Retrieval
from rdm.sampling.retrieval.conditioning import Conditioning
from rdm.sampling.retrieval.look_up import look_up
from rdm.sampling.retrieval.query_vectors import text_vectors

SETTINGS = SampleSettings(k=3)


def asked(
    model: Model, database: RetrievalDatabase, turn: QueryTurn | None, **query: object
) -> Conditioning:
    fields = {"texts": ("a",), "seeds": "0", "settings": SETTINGS, "turn": turn, **query}
    return look_up(Request.model_validate(fields), model.info, {"db": database})[0]


def unit(database: RetrievalDatabase, text: str) -> NDArray[np.float64]:
    return normalize(text_vectors(database.encoder, [text]))[0].astype(np.float64)


def angle(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    return float(np.arccos(np.clip(np.dot(one.astype(np.float64), other), -1, 1)))


def test_the_ends_of_a_turn_are_the_two_queries(model: Model, database: RetrievalDatabase) -> None:
    for fraction, text in ((0.0, "a"), (1.0, "b")):
        turned = asked(model, database, QueryTurn(text="b", fraction=fraction))
        plain = asked(model, database, None, texts=(text,))
        assert np.array_equal(turned.query.embedding, plain.query.embedding)
        assert np.array_equal(turned.query.neighbor_ids, plain.query.neighbor_ids)


def test_a_turn_goes_its_fraction_of_the_angle_on_the_great_circle(
    model: Model, database: RetrievalDatabase
) -> None:
    one, other = unit(database, "a"), unit(database, "b")
    turned = asked(model, database, QueryTurn(text="b", fraction=0.25)).query.embedding
    assert np.linalg.norm(turned) == pytest.approx(1, abs=1e-5)
    assert angle(turned, one) == pytest.approx(angle(one, other) * 0.25, abs=1e-3)
    assert angle(turned, other) == pytest.approx(angle(one, other) * 0.75, abs=1e-3)


def test_the_neighbors_are_those_of_the_turned_vector(
    model: Model, database: RetrievalDatabase
) -> None:
    turned = asked(model, database, QueryTurn(text="b", fraction=0.5)).query
    ids, similarities = database.search_vectors(turned.embedding[None], 3)
    assert np.array_equal(turned.neighbor_ids, ids[0])
    assert turned.similarities == pytest.approx(similarities[0])


def test_a_text_difference_turns_along_the_difference(
    model: Model, database: RetrievalDatabase
) -> None:
    direction = unit(database, "b") - unit(database, "c")
    direction /= np.linalg.norm(direction)
    start = unit(database, "a")
    turned = asked(model, database, QueryTurn(text="b", away="c", fraction=0.3)).query.embedding
    assert angle(turned, direction) == pytest.approx(0.7 * angle(start, direction), abs=1e-3)


def test_a_picture_is_turned_to_a_text_and_a_text_to_a_picture(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    path = tmp_path / "b.png"
    database.pixels(np.array([3]))[0].save(path)
    there = asked(model, database, QueryTurn(image=str(path), fraction=0.5))
    back = asked(model, database, QueryTurn(text="a"), texts=(), images=(str(path),))
    assert there.query.embedding == pytest.approx(back.query.embedding, abs=1e-5)
    assert there.turn is not None
    assert (there.turn.image, len(there.turn.image_sha256)) == ("b.png", 64)


def test_a_turned_query_that_is_a_token_is_the_turned_vector(
    model: Model, database: RetrievalDatabase
) -> None:
    retrieval = Retrieval(tokens="query")
    half = asked(model, database, QueryTurn(text="b"), retrieval=retrieval)
    assert half.tokens is not None
    assert normalize(half.tokens.values)[0] == pytest.approx(half.query.embedding, abs=1e-6)


def test_two_texts_without_a_difference_are_refused(
    model: Model, database: RetrievalDatabase
) -> None:
    with pytest.raises(UsageError, match="no direction between them"):
        asked(model, database, QueryTurn(text="b", away="b"))


def test_a_turn_to_a_file_that_is_no_picture_is_refused(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        asked(model, database, QueryTurn(image=str(tmp_path / "gone.png")))
