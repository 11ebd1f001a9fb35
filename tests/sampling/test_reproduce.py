from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_model import write_random_model

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.errors import DatabaseError, ModelError, SourceError, UsageError
from rdm.models.precision import ActingPrecision
from rdm.sampling import Model, SampleSettings, open_model
from rdm.sampling.draw_request import draw_request
from rdm.sampling.recipe.picture_file import Picture, read_picture
from rdm.sampling.reproduce import Given, reproduce
from rdm.sampling.request.sample_request import NegativeRequest, Request, Retrieval
from rdm.sampling.request.start_request import StartRequest

SETTINGS = SampleSettings(k=2, num_steps=3, batch_size=3)


@pytest.fixture
def root(database: RetrievalDatabase, tmp_path: Path) -> Path:
    """A copy of the database that a test may change."""
    shutil.copytree(database.folder.url, tmp_path / "db")
    return tmp_path / "db"


def drawn(request: Request, model: Model, database: RetrievalDatabase, out: Path) -> list[Picture]:
    draw_request(request, model, {"db": database}, out)
    return [read_picture(path) for path in sorted(out.glob("[0-9]*.png"))]


@pytest.fixture(scope="module")
def pictures(
    model: Model, database: RetrievalDatabase, tmp_path_factory: pytest.TempPathFactory
) -> list[Picture]:
    """Four pictures of a text, of which the last is alone in its batch."""
    request = Request(texts=("a",), seeds="0-3", settings=SETTINGS)
    return drawn(request, model, database, tmp_path_factory.mktemp("drawn") / "out")


def test_every_picture_is_drawn_again_bit_for_bit(
    pictures: list[Picture], model: Model, database: RetrievalDatabase
) -> None:
    for picture in pictures:
        pixels, found = reproduce(picture, model, [database])
        assert found.identical
        assert np.array_equal(pixels, picture.pixels)
        assert (found.differing_pixels, found.largest_difference) == (0.0, 0)
        assert found.computed_differently == ()


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ("a", "b"), "retrieval": Retrieval(tokens="query")},
        {"texts": ("a", "b"), "retrieval": Retrieval(tokens="query+neighbors")},
        {"classes": ("owl_bird",), "retrieval": Retrieval(tokens="query+neighbors")},
        {"texts": ("a",), "retrieval": Retrieval(pool=6)},
        {"texts": ("a",), "retrieval": Retrieval(weights={"0": 0.5, "3": 2.0}, include=("3",))},
        {"patches": ("5",), "retrieval": Retrieval(tokens="query+neighbors")},
        {"retrieval": Retrieval(include=("1", "4"))},
        {
            "texts": ("a",),
            "retrieval": Retrieval(negative=NegativeRequest(texts=("c",), patches=("2",))),
        },
        {
            "texts": ("a",),
            "retrieval": Retrieval(
                tokens="query", negative=NegativeRequest(texts=("c",), scale=0.5)
            ),
        },
    ],
)
def test_every_way_to_ask_is_drawn_again_bit_for_bit(
    model: Model, database: RetrievalDatabase, tmp_path: Path, change: dict[str, object]
) -> None:
    request = Request.model_validate({"seeds": "4-5", "settings": SETTINGS, **change})
    for picture in drawn(request, model, database, tmp_path / "out"):
        assert reproduce(picture, model, [database])[1].identical


@pytest.mark.parametrize(
    ("start", "change"),
    [
        ({"outpaint": 4}, {"texts": ("a",)}),
        ({"invert": True}, {"texts": ("a",)}),
        ({"invert": True, "towards": 9}, {"texts": ("a",)}),
        (None, {"texts": ("a",), "turn": {"text": "b"}}),
        (None, {"texts": ("a",), "turn": {"text": "b"}, "retrieval": {"tokens": "query"}}),
        (
            None,
            {
                "classes": ("owl",),
                "turn": {"text": "b", "away": "c", "fraction": 0.2},
                "retrieval": {"tokens": "query+neighbors"},
            },
        ),
        (None, {"texts": ("a",), "turn": {"image": "?"}, "retrieval": {"tokens": "query"}}),
    ],
)
def test_every_way_to_edit_is_drawn_again_bit_for_bit(
    model: Model,
    database: RetrievalDatabase,
    tmp_path: Path,
    start: dict[str, object] | None,
    change: dict[str, object],
) -> None:
    photograph = database.pixels(np.array([3]))[0]
    path = tmp_path / "photograph.png"
    photograph.save(path)
    fields: dict[str, object] = {
        "seeds": "4-5",
        "settings": {"k": 2, "num_steps": 3, "batch_size": 3, "eta": 0.0},
        "start": None if start is None else {"image": str(path), **start},
        **change,
    }
    if change.get("turn") == {"image": "?"}:
        fields["turn"] = {"image": str(path)}
    request = Request.model_validate(fields)
    given = Given(start=path, towards=photograph)
    for picture in drawn(request, model, database, tmp_path / "out"):
        assert reproduce(picture, model, [database], given)[1].identical


def test_a_picture_that_a_token_was_turned_to_is_asked_for(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    path = tmp_path / "tit.png"
    database.pixels(np.array([3]))[0].save(path)
    request = Request.model_validate(
        {
            "texts": ("a",),
            "turn": {"image": str(path)},
            "retrieval": {"tokens": "query"},
            "seeds": "0",
            "settings": SETTINGS,
        }
    )
    (picture,) = drawn(request, model, database, tmp_path / "out")
    with pytest.raises(UsageError, match=r"tit\.png was a token") as caught:
        reproduce(picture, model, [database])
    assert caught.value.fix.startswith("--towards-image")


def test_a_removed_neighbor_of_an_inversion_is_refused_by_name(
    model: Model, root: Path, tmp_path: Path
) -> None:
    opened = RetrievalDatabase.open(str(root))
    path = tmp_path / "photograph.png"
    opened.pixels(np.array([len(opened.living_ids()) - 1]))[0].save(path)
    request = Request.model_validate(
        {
            "texts": ("a",),
            "retrieval": {"include": ("0", "1")},
            "start": {"image": str(path), "invert": True},
            "seeds": "0",
            "settings": {"k": 2, "num_steps": 3, "eta": 0.0},
        }
    )
    (picture,) = drawn(request, model, opened, tmp_path / "out")
    assert picture.record.inversion is not None
    own = {one.image_id for one in picture.record.neighbors}
    gone = next(
        one.image_id for one in picture.record.inversion.neighbors if one.image_id not in own
    )
    run_build(update_builder(str(root), Removal(frozenset([gone]))), ComputeConfig(dask="inline"))
    with pytest.raises(DatabaseError, match=f"the photograph {gone} was removed on request"):
        reproduce(picture, model, [RetrievalDatabase.open(str(root))], Given(start=path))


def test_the_number_of_threads_is_that_of_the_recipe(
    pictures: list[Picture], model: Model, database: RetrievalDatabase
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        found = reproduce(pictures[0], model, [database])[1]
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert found.identical


def test_a_file_whose_pixels_were_changed_is_told_from_a_drawing_that_differs(
    pictures: list[Picture], model: Model, database: RetrievalDatabase
) -> None:
    pixels = pictures[0].pixels.copy()
    pixels[3, 5, 1] ^= 4
    found = reproduce(pictures[0]._replace(pixels=pixels), model, [database])[1]
    assert found.identical
    assert found.file_altered
    assert (found.largest_difference, found.differing_pixels) == (4, 1 / (32 * 32))


def test_another_seed_in_the_recipe_is_another_picture(
    pictures: list[Picture], model: Model, database: RetrievalDatabase
) -> None:
    forged = pictures[0].record.model_copy(update={"seed": 99})
    found = reproduce(pictures[0]._replace(record=forged), model, [database])[1]
    assert not found.identical
    assert found.differing_pixels > 0.5


def test_what_computed_otherwise_is_named(
    pictures: list[Picture], model: Model, database: RetrievalDatabase
) -> None:
    record = pictures[0].record
    other = record.software.model_copy(update={"torch": "1.0"})
    changed = pictures[0]._replace(record=record.model_copy(update={"software": other}))
    found = reproduce(changed, model, [database])[1]
    assert found.computed_differently == (f"torch 1.0, now {torch.__version__}",)


def test_another_model_is_refused_by_its_digest(
    pictures: list[Picture], database: RetrievalDatabase, model: Model, tmp_path: Path
) -> None:
    folder = write_random_model(tmp_path / "other", database)
    info = folder / "model.json"
    info.write_text(info.read_text() + "\n")
    other = open_model(folder)
    with pytest.raises(ModelError, match=f"{model.digest}, this one is {other.digest}"):
        reproduce(pictures[0], other, [database])


def test_a_database_that_is_not_given_is_named(pictures: list[Picture], model: Model) -> None:
    with pytest.raises(UsageError, match="from the database db, version 1, which is not given"):
        reproduce(pictures[0], model, [])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_picture_is_drawn_again_in_the_precision_that_it_was_drawn_in(
    model: Model, database: RetrievalDatabase, tmp_path: Path, precision: ActingPrecision
) -> None:
    request = Request(texts=("a",), seeds="3", settings=SampleSettings(k=2, num_steps=4))
    with model.generator.computing_in(precision):
        draw_request(request, model, {"birds": database}, tmp_path)
    found = reproduce(read_picture(tmp_path / "00000.png"), model, [database])[1]
    assert (found.identical, found.computed_differently) == (True, ())
    assert model.generator.precision == "auto"


def test_a_removed_photograph_is_refused_by_name(
    pictures: list[Picture], model: Model, root: Path
) -> None:
    gone = pictures[0].record.neighbors[1].image_id
    run_build(update_builder(str(root), Removal(frozenset([gone]))), ComputeConfig(dask="inline"))
    with pytest.raises(DatabaseError, match=f"the photograph {gone} was removed on request"):
        reproduce(pictures[0], model, [RetrievalDatabase.open(str(root))])


def test_a_later_version_that_has_the_neighbors_still_draws_the_same(
    pictures: list[Picture], model: Model, root: Path
) -> None:
    used = {one.image_id for one in pictures[0].record.neighbors}
    opened = RetrievalDatabase.open(str(root))
    others = {one.image_id for one in opened.records(opened.living_ids())} - used
    removal = Removal(frozenset(sorted(others)[:1]))
    run_build(update_builder(str(root), removal), ComputeConfig(dask="inline"))
    later = RetrievalDatabase.open(str(root))
    assert later.version.number == 2
    assert reproduce(pictures[0], model, [later])[1].identical


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"patch_id": 10_000}, "has no patch 10000"),
        ({"sha256": "0" * 64}, "is not of the photograph"),
    ],
)
def test_a_patch_that_is_not_the_one_is_refused(
    pictures: list[Picture],
    model: Model,
    database: RetrievalDatabase,
    change: dict[str, object],
    what: str,
) -> None:
    record = pictures[0].record
    neighbors = (record.neighbors[0].model_copy(update=change), *record.neighbors[1:])
    forged = record.model_copy(update={"neighbors": neighbors})
    with pytest.raises(DatabaseError, match=what):
        reproduce(pictures[0]._replace(record=forged), model, [database])


def test_a_query_picture_that_was_a_token_is_asked_for_and_checked(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    owl, other = database.pixels(np.array([3, 6]))
    owl.save(tmp_path / "owl.png")
    request = Request(
        images=(str(tmp_path / "owl.png"),),
        seeds="0",
        retrieval=Retrieval(tokens="query+neighbors"),
        settings=SETTINGS,
    )
    (picture,) = drawn(request, model, database, tmp_path / "out")
    with pytest.raises(UsageError, match=r"owl\.png was a token") as caught:
        reproduce(picture, model, [database])
    assert picture.record.query is not None
    assert picture.record.query.image_sha256 in caught.value.fix
    with pytest.raises(SourceError, match="not the query picture"):
        reproduce(picture, model, [database], Given(other))
    assert reproduce(picture, model, [database], Given(owl))[1].identical


def test_a_query_picture_whose_neighbors_conditioned_is_not_needed(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    Image.fromarray(np.asarray(database.pixels(np.array([3]))[0])).save(tmp_path / "owl.png")
    request = Request(images=(str(tmp_path / "owl.png"),), seeds="0", settings=SETTINGS)
    (picture,) = drawn(request, model, database, tmp_path / "out")
    assert reproduce(picture, model, [database])[1].identical


def test_a_changed_picture_is_drawn_again_from_its_start_and_mask(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    start, mask = tmp_path / "start.png", tmp_path / "mask.png"
    database.pixels(np.array([3]))[0].save(start)
    painted = np.zeros((32, 32), np.uint8)
    painted[:, 16:] = 255
    Image.fromarray(painted).save(mask)
    for begun in (
        StartRequest(image=str(start), strength=0.7),
        StartRequest(image=str(start), mask=str(mask)),
        StartRequest(towards=9, fraction=0.3),
    ):
        request = Request(texts=("a",), seeds="0-1", settings=SETTINGS, start=begun)
        out = tmp_path / f"out{begun.strength}{begun.towards}"
        for picture in drawn(request, model, database, out):
            if begun.image is not None:
                with pytest.raises(UsageError, match="started from a picture"):
                    reproduce(picture, model, [database])
                with pytest.raises(SourceError, match="not the file that drawing started from"):
                    reproduce(picture, model, [database], Given(start=mask, mask=start))
            given = Given(start=start, mask=mask)
            assert reproduce(picture, model, [database], given)[1].identical


def test_a_picture_made_from_a_drawn_one_names_its_parent(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    request = Request(texts=("a",), seeds="0", settings=SETTINGS)
    (parent,) = drawn(request, model, database, tmp_path / "first")
    begun = StartRequest(image=str(tmp_path / "first" / "00000.png"))
    changed = request.model_copy(update={"start": begun})
    (child,) = drawn(changed, model, database, tmp_path / "second")
    assert child.record.parents == (parent.record.pixels_sha256,)


def test_a_picture_led_away_from_a_weaker_model_needs_that_model(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    weaker = write_random_model(tmp_path / "weaker", database)
    settings = SETTINGS.model_copy(update={"autoguidance": str(weaker)})
    request = Request(texts=("a",), seeds="0", settings=settings)
    (picture,) = drawn(request, model, database, tmp_path / "out")
    assert str(tmp_path) not in picture.record.model_dump_json()
    with pytest.raises(UsageError, match="a weaker model, weaker "):
        reproduce(picture, model, [database])
    with pytest.raises(ModelError, match="led away from the model weaker"):
        reproduce(picture, model, [database], Given(weaker=str(model.directory)))
    assert reproduce(picture, model, [database], Given(weaker=str(weaker)))[1].identical


def test_a_picture_with_credits_alone_cannot_be_drawn_again(
    pictures: list[Picture], model: Model, database: RetrievalDatabase
) -> None:
    credited = pictures[0]._replace(record=pictures[0].record.for_png("credits"))
    with pytest.raises(SourceError, match="its credits alone"):
        reproduce(credited, model, [database])


def test_settings_of_another_release_are_named(
    pictures: list[Picture], model: Model, database: RetrievalDatabase
) -> None:
    record = pictures[0].record
    settings = {**(record.settings or {}), "sparkle": 2.0}
    changed = pictures[0]._replace(record=record.model_copy(update={"settings": settings}))
    with pytest.raises(SourceError, match="another release: sparkle"):
        reproduce(changed, model, [database])
