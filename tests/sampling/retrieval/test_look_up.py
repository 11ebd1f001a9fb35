from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.encoders import normalize
from rdm.errors import DatabaseError, EncoderMismatchError, SourceError, UsageError
from rdm.sampling import Model, SampleSettings, sample, text_queries
from rdm.sampling.drawing.draw import draw
from rdm.sampling.request.sample_request import Request, request_of
from rdm.sampling.retrieval.conditioning import Conditioning
from rdm.sampling.retrieval.look_up import LookUp, look_up

INLINE = ComputeConfig(dask="inline")
SETTINGS = SampleSettings(k=3, num_steps=2)


def request(**fields: Any) -> Request:
    asked = {"texts": ["a"], "seeds": "0", "settings": {"k": 3, "num_steps": 2}}
    return request_of({**asked, **fields})


def one(model: Model, database: RetrievalDatabase, **fields: Any) -> Conditioning:
    (found,) = look_up(request(**fields), model.info, {"birds": database})
    return found


def nearest(database: RetrievalDatabase, text: str, k: int) -> list[int]:
    return text_queries(database, [text], k)[0].neighbor_ids.tolist()


def test_look_up_and_draw_give_the_bits_of_sample(
    model: Model, database: RetrievalDatabase
) -> None:
    asked = look_up(request(texts=["a", "b"], seeds="4-5"), model.info, {"birds": database})
    queries = [query for query in text_queries(database, ["a", "b"], 3) for _ in range(2)]
    old = sample(model, database, queries, [4, 5, 4, 5], SETTINGS)
    assert np.array_equal(draw(model, asked, SETTINGS), np.stack([item.pixels for item in old]))


def test_what_was_looked_up_is_drawn_elsewhere_without_a_database(
    model: Model, database: RetrievalDatabase
) -> None:
    asked = [one(model, database)]
    sent = pickle.loads(pickle.dumps(asked))
    assert np.array_equal(draw(model, sent, SETTINGS), draw(model, asked, SETTINGS))
    # All that travels: no path, no map of the database.
    assert len(pickle.dumps(asked)) < 3000


def test_the_query_is_a_token_alone_or_before_its_neighbors(
    model: Model, database: RetrievalDatabase
) -> None:
    text = normalize(database.encoder.encode_texts(["a"]))[0]
    alone = one(model, database, retrieval={"tokens": "query"}).tokens
    both = one(model, database, retrieval={"tokens": "query+neighbors"}).tokens
    plain = one(model, database).tokens
    assert alone is not None
    assert both is not None
    assert plain is not None
    assert (alone.kinds, both.kinds) == (("query",), ("query", "patch", "patch"))
    assert np.array_equal(alone.values, text[None])
    assert np.array_equal(both.values, np.stack([text, *plain.values[:2]]))


@pytest.mark.parametrize("tokens", ["query", "query+neighbors"])
def test_a_patch_that_is_its_own_token_is_credited(
    model: Model, database: RetrievalDatabase, tokens: str
) -> None:
    found = one(model, database, texts=[], patches=[5], retrieval={"tokens": tokens})
    ids = found.query.neighbor_ids.tolist()
    assert ids[0] == 5
    assert len(set(ids)) == len(ids) == (1 if tokens == "query" else 3)
    assert found.tokens is not None
    assert set(found.tokens.kinds) == {"patch"}
    assert found.query.similarities[0] == pytest.approx(1, abs=1e-3)


def test_a_class_is_looked_up_by_several_prompts(model: Model, database: RetrievalDatabase) -> None:
    found = one(model, database, texts=[], classes=["great_tit"])
    assert (found.query.kind, found.query.label) == ("class", "great_tit")
    single = normalize(database.encoder.encode_texts(["great tit"]))[0]
    assert np.linalg.norm(found.query.embedding) == pytest.approx(1, abs=1e-5)
    assert 0.5 < found.query.embedding @ single < 0.9999


def test_each_seed_draws_its_own_neighbors_of_the_pool(
    model: Model, database: RetrievalDatabase
) -> None:
    asked = request(seeds="0-19", retrieval={"pool": 6})
    rows = [c.query.neighbor_ids.tolist() for c in look_up(asked, model.info, {"b": database})]
    pool = nearest(database, "a", 6)
    assert all(set(row) <= set(pool) and len(set(row)) == 3 for row in rows)
    # Nearest first, whatever was drawn.
    assert all([pool.index(i) for i in row] == sorted(pool.index(i) for i in row) for row in rows)
    assert len({tuple(row) for row in rows}) > 8
    assert {i for row in rows for i in row} == set(pool)
    # A picture's neighbors depend on its seed, and not on the others.
    alone = one(model, database, seeds="7", retrieval={"pool": 6})
    assert alone.query.neighbor_ids.tolist() == rows[7]


def test_a_pool_of_k_is_no_pool(model: Model, database: RetrievalDatabase) -> None:
    found = one(model, database, retrieval={"pool": 3})
    assert found.query.neighbor_ids.tolist() == nearest(database, "a", 3)


def test_neighbors_by_hand_come_first_and_are_not_found_again(
    model: Model, database: RetrievalDatabase
) -> None:
    first, second, third = nearest(database, "a", 3)
    found = one(model, database, retrieval={"include": [second]})
    assert found.query.neighbor_ids.tolist() == [second, first, third]
    plain = one(model, database)
    assert found.query.similarities[0] == plain.query.similarities[1]


def test_neighbors_by_hand_need_no_query(model: Model, database: RetrievalDatabase) -> None:
    found = one(model, database, texts=[], retrieval={"include": [4, 1, 2]})
    assert (found.query.kind, found.query.neighbor_ids.tolist()) == ("neighbors", [4, 1, 2])
    assert found.tokens is not None
    assert np.array_equal(found.tokens.values, database.embeddings(np.array([4, 1, 2])))


@pytest.mark.parametrize(
    ("exclude", "column", "value"),
    [
        ({"photographs": ["3.jpg"]}, "image_id", "3.jpg"),
        ({"authors": ["author 1"]}, "author", "author 1"),
        ({"licenses": ["CC BY 2.0"]}, "license", "CC BY 2.0"),
    ],
)
def test_what_is_excluded_is_never_found(
    model: Model, credited: RetrievalDatabase, exclude: dict[str, Any], column: str, value: str
) -> None:
    gone = set(credited.patches_where(column, [value]).tolist())
    living = set(credited.living_ids().tolist())
    assert 0 < len(gone) < len(living)
    settings = {"k": len(living - gone), "num_steps": 1}
    found = one(model, credited, retrieval={"exclude": exclude}, settings=settings)
    assert set(found.query.neighbor_ids.tolist()) == living - gone
    settings = {"k": len(living - gone) + 1, "num_steps": 1}
    with pytest.raises(UsageError, match="what is excluded leaves"):
        one(model, credited, retrieval={"exclude": exclude}, settings=settings)


def test_a_photograph_that_was_removed_since_may_be_excluded_still(
    model: Model, credited: RetrievalDatabase, tmp_path: Path
) -> None:
    """Its patches are in no look-up any more, so a request of before the removal means the same."""
    root = tmp_path / "db"
    shutil.copytree(credited.folder.local(""), root)
    run_build(update_builder(str(root), Removal(frozenset(["3.jpg"]))), INLINE)
    asked: dict[str, Any] = {"retrieval": {"exclude": {"photographs": ["3.jpg"]}}}
    for compacted in (False, True):
        if compacted:
            compact_database(str(root))
        database = RetrievalDatabase.open(str(root))
        found, plain = one(model, database, **asked), one(model, database)
        assert found.query.neighbor_ids.tolist() == plain.query.neighbor_ids.tolist()
    for exclude in ({"photographs": ["nobody.jpg"]}, {"authors": ["nobody"]}):
        with pytest.raises(UsageError, match="no patch has it"):
            one(model, database, retrieval={"exclude": exclude})


def test_the_license_of_removed_photographs_alone_may_be_excluded_still(
    model: Model, credited: RetrievalDatabase, tmp_path: Path
) -> None:
    root = tmp_path / "db"
    shutil.copytree(credited.folder.local(""), root)
    run_build(update_builder(str(root), Removal(frozenset(["3.jpg"]))), INLINE)
    database = RetrievalDatabase.open(str(root))
    assert not len(database.patches_where("license", ["CC BY 2.0"]))
    found = one(model, database, retrieval={"exclude": {"licenses": ["CC BY 2.0"]}})
    assert len(found.query.neighbor_ids) == 3


def test_a_pool_from_which_a_seed_would_draw_nothing_but_weights_of_0_is_refused_at_the_check(
    model: Model, database: RetrievalDatabase
) -> None:
    ids = nearest(database, "a", 4)
    settings = {"k": 1, "num_steps": 1}

    def looked_up(seeds: str, zeros: int) -> LookUp:
        weights = {str(patch): 0 for patch in ids[:zeros]}
        retrieval = {"pool": 4, "weights": weights}
        asked = request(seeds=seeds, retrieval=retrieval, settings=settings)
        return LookUp(asked, model.info, {"birds": database})

    drawn = {seed: looked_up(str(seed), 0).rows(0, 1)[0].query.neighbor_ids[0] for seed in range(9)}
    unlucky = [seed for seed, patch in drawn.items() if patch == ids[0]]
    lucky = [seed for seed, patch in drawn.items() if patch != ids[0]]
    assert unlucky
    assert lucky
    looked_up(",".join(map(str, lucky)), 1).check()
    with pytest.raises(UsageError, match="are 0, so nothing would condition it"):
        looked_up(f"{lucky[0]},{unlucky[0]}", 1).check()


def test_an_excluded_patch_gives_its_place_to_the_next(
    model: Model, database: RetrievalDatabase
) -> None:
    ids = nearest(database, "a", 4)
    found = one(model, database, retrieval={"exclude": {"patches": [ids[0]]}})
    assert found.query.neighbor_ids.tolist() == ids[1:]


def test_weights_reach_tokens_and_the_query_keeps_its_own(
    model: Model, database: RetrievalDatabase
) -> None:
    first, second = nearest(database, "a", 2)
    retrieval = {"tokens": "query+neighbors", "weights": {str(second): 0.5, "0": 3}}
    found = one(model, database, retrieval=retrieval)
    expected = [3.0 if i == 0 else 0.5 if i == second else 1.0 for i in (first, second)]
    assert found.tokens is not None
    assert found.tokens.weights.tolist() == [1.0, *expected]
    assert list(found.query.weights) == expected


def test_a_weight_of_two_is_the_neighbor_given_twice_and_zero_is_none(
    model: Model, database: RetrievalDatabase
) -> None:
    first, second, third = nearest(database, "a", 3)
    weighted = one(model, database, retrieval={"weights": {first: 2, third: 0}})
    tokens = weighted.tokens
    assert tokens is not None
    twice = Conditioning(
        weighted.query,
        weighted.seed,
        type(tokens)(tokens.values[[0, 0, 1]], tokens.kinds, np.ones(3, np.float32)),
    )
    some, same = (draw(model, [c], SETTINGS).astype(int) for c in (weighted, twice))
    plain = draw(model, [one(model, database)], SETTINGS).astype(int)
    # As near as a processor's 16 bits are.
    assert np.abs(some - same).mean() < 1
    assert np.abs(some - plain).mean() > 2 * np.abs(some - same).mean()


def test_databases_share_the_neighbors_by_their_weights(
    model: Model, database: RetrievalDatabase, other: RetrievalDatabase
) -> None:
    retrieval = {"databases": [{"name": "a", "weight": 3}, {"name": "b", "weight": 1}]}
    asked = request(retrieval=retrieval, settings={"k": 4})
    (found,) = look_up(asked, model.info, {"b": other, "a": database})
    assert sorted(found.query.databases) == ["a", "a", "a", "b"]
    assert (np.diff(found.query.similarities) <= 0).all()
    assert found.query.weights == ()
    for name, home in (("a", database), ("b", other)):
        ids = found.query.neighbor_ids[np.array(found.query.databases) == name].tolist()
        assert ids == nearest(home, "a", len(ids))


def test_shares_that_are_not_whole_are_made_up_for_by_attention(
    model: Model, database: RetrievalDatabase, other: RetrievalDatabase
) -> None:
    retrieval = {"databases": [{"name": "a", "weight": 0.7}, {"name": "b", "weight": 0.3}]}
    asked = request(retrieval=retrieval, settings={"k": 4})
    (found,) = look_up(asked, model.info, {"a": database, "b": other})
    masses = {"a": 0.0, "b": 0.0}
    for name, weight in zip(found.query.databases, found.query.weights, strict=True):
        masses[name] += weight
    assert masses == pytest.approx({"a": 2.8, "b": 1.2})


def test_a_patch_of_another_database_is_named_with_it(
    model: Model, database: RetrievalDatabase, other: RetrievalDatabase
) -> None:
    retrieval = {
        "databases": [{"name": "a", "weight": 1}, {"name": "b", "weight": 0}],
        "include": ["b:1"],
    }
    (found,) = look_up(request(retrieval=retrieval), model.info, {"a": database, "b": other})
    assert found.query.databases == ("b", "a", "a")
    assert found.tokens is not None
    assert np.array_equal(found.tokens.values[0], other.embeddings(np.array([1]))[0])


def test_a_negative_is_looked_up_as_the_query_is(model: Model, database: RetrievalDatabase) -> None:
    negative = {"texts": ["b"], "patches": [2], "scale": 1.5}
    found = one(model, database, retrieval={"negative": negative}).negative
    assert found is not None
    assert found.tokens is not None
    expected = database.embeddings(np.array([2, *nearest(database, "b", 3)]))
    assert np.array_equal(found.tokens.values, expected)
    assert found.scale == 1.5


def test_a_negative_leads_away_and_that_of_the_picture_itself_changes_nothing(
    model: Model, database: RetrievalDatabase
) -> None:
    plain = one(model, database)
    led = one(model, database, retrieval={"negative": {"texts": ["b"]}})
    itself = one(model, database, retrieval={"negative": {"texts": ["a"]}})
    unguided = draw(model, [plain], SETTINGS.model_copy(update={"guidance_scale": 1.0}))
    # e_c + s (e_c - e_c): led away from itself, a picture is that without guidance.
    same = draw(model, [itself], SETTINGS)
    assert np.abs(same.astype(int) - unguided).max() <= 2
    assert np.abs(draw(model, [led], SETTINGS).astype(int) - unguided).max() > 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retrieval": {"include": [1, 2, 3, 4]}}, "k = 3 has room for 3"),
        ({"retrieval": {"include": [1], "tokens": "query"}}, "the query alone"),
        ({"texts": [], "retrieval": {"include": [1]}}, "no query that would find others"),
        ({"retrieval": {"include": [1], "exclude": {"patches": [1]}}}, "asked for and excluded"),
        ({"retrieval": {"databases": [{"name": "cats"}]}}, "no database 'cats'"),
        ({"retrieval": {"databases": [{"name": "birds", "version": 9}]}}, "of version 9"),
        ({"retrieval": {"include": ["cats:1"]}}, "names a database that the request does not"),
        ({"retrieval": {"exclude": {"licenses": ["GPL"]}}}, "nothing is excluded by the license"),
        ({"retrieval": {"weights": {str(i): 0 for i in range(16)}}}, "weights of all neighbors"),
        ({"texts": []}, "nothing to sample"),
        ({"texts": [], "unconditional": True, "centers": 999}, "999 cluster centers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_looked_up_is_refused(
    model: Model, database: RetrievalDatabase, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        one(model, database, **fields)
    assert error.value.fix


@pytest.mark.parametrize("field", ["include", "weights", "negative", "patches"])
def test_a_patch_that_never_was_is_refused(
    model: Model, database: RetrievalDatabase, field: str
) -> None:
    retrieval: dict[str, Any] = {
        "include": {"include": [999]},
        "weights": {"weights": {"999": 2}},
        "negative": {"negative": {"patches": [999]}},
        "patches": {},
    }[field]
    patches = [999] if field == "patches" else []
    with pytest.raises(DatabaseError, match="patch ids run from 0"):
        one(model, database, patches=patches, retrieval=retrieval)


def test_more_neighbors_than_patches_are_refused(model: Model, database: RetrievalDatabase) -> None:
    with pytest.raises(DatabaseError, match="k = 999"):
        one(model, database, settings={"k": 999})


def test_a_database_of_another_encoder_is_refused_wherever_it_is_in_the_mix(
    model: Model, database: RetrievalDatabase, other: RetrievalDatabase
) -> None:
    encoder = other.version.encoder.model_copy(update={"digest": "0" * 16})
    version = other.version.model_copy(update={"encoder": encoder})
    strange = RetrievalDatabase(other.folder, version)
    retrieval = {"databases": [{"name": "a"}, {"name": "b"}]}
    with pytest.raises(EncoderMismatchError):
        look_up(request(retrieval=retrieval), model.info, {"a": database, "b": strange})


def test_a_picture_that_is_none_is_refused_before_anything_is_looked_up(
    model: Model, database: RetrievalDatabase, tmp_path: Any
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match="the picture cannot be read"):
        LookUp(request(images=[str(tmp_path / "a.png")]), model.info, {"birds": database})


def test_pictures_may_come_from_elsewhere_than_files(
    model: Model, database: RetrievalDatabase
) -> None:
    asked = request(texts=[], images=["upload 7"])
    patch = database.pixels(np.array([3]))[0]
    opened = {"upload 7": patch}
    (found,) = look_up(asked, model.info, {"b": database}, open_image=opened.__getitem__)
    assert (found.query.label, found.query.neighbor_ids[0]) == ("upload 7", 3)


def test_a_resolved_request_asks_for_the_same_again(
    model: Model, database: RetrievalDatabase
) -> None:
    asked = request(seeds="0-2", retrieval={"pool": 5, "weights": {"3": 2}})
    first = LookUp(asked, model.info, {"birds": database})
    resolved = first.resolved()
    assert resolved.retrieval.databases[0].version == database.version.number
    again = LookUp(request_of(resolved.model_dump(mode="json")), model.info, {"birds": database})
    assert again.resolved() == resolved
    for a, b in zip(first.rows(0, 9), again.rows(0, 9), strict=True):
        assert a.query.neighbor_ids.tolist() == b.query.neighbor_ids.tolist()
        assert a.query.weights == b.query.weights
