"""Pictures that are changed, kept in part, or drawn from noise between two seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from rdm.database import RetrievalDatabase
from rdm.errors import SourceError, UsageError
from rdm.sampling import Model, SampleSettings
from rdm.sampling.draw_request import draw_request
from rdm.sampling.drawing.start import open_start
from rdm.sampling.output import read_samples
from rdm.sampling.recipe.picture_file import read_recipe
from rdm.sampling.request.sample_request import Request, request_of
from rdm.sampling.request.start_request import StartRequest

SETTINGS = SampleSettings(k=2, num_steps=10, sampler="dpm++2m", guidance_scale=1.0)


def side_of(model: Model) -> int:
    assert model.first_stage is not None
    return model.config.network.sample_shape[-1] * model.first_stage.factor


@pytest.fixture
def photograph(model: Model, encoded: Callable[..., bytes], tmp_path: Path) -> Path:
    """A photograph, twice as large as the model's pictures."""
    side = side_of(model) * 2
    path = tmp_path / "start.png"
    (tmp_path / "raw.jpg").write_bytes(encoded(3))
    Image.open(tmp_path / "raw.jpg").convert("RGB").resize((side, side)).save(path)
    return path


def mask_of(model: Model, path: Path, size: tuple[int, int] | None = None) -> Path:
    """A mask that keeps the left half, of the size of `photograph`."""
    side = side_of(model) * 2
    values = np.zeros((side, side), np.uint8)
    values[:, side // 2 :] = 255
    Image.fromarray(values).resize(size or (side, side)).save(path)
    return path


def drawn(
    start: StartRequest | None,
    model: Model,
    database: RetrievalDatabase,
    out: Path,
    seeds: str = "1",
) -> list[NDArray[np.uint8]]:
    request = Request(texts=("a",), seeds=seeds, settings=SETTINGS, start=start)
    draw_request(request, model, {"birds": database}, out)
    return [one.pixels for one in read_samples(out)]


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_strength_decides_how_far_a_picture_is_changed(
    model: Model, database: RetrievalDatabase, photograph: Path, tmp_path: Path
) -> None:
    opened = open_start(StartRequest(image=str(photograph)), model)
    assert opened.pixels is not None
    moved = [
        distance(
            drawn(
                StartRequest(image=str(photograph), strength=strength),
                model,
                database,
                tmp_path / str(strength),
            )[0],
            drawn(
                StartRequest(image=str(photograph), strength=0.0),
                model,
                database,
                tmp_path / f"{strength}-none",
            )[0],
        )
        for strength in (0.0, 0.2, 1.0)
    ]
    assert moved[0] == 0 < moved[1] < moved[2]


def test_what_a_mask_keeps_is_the_picture_to_the_last_bit(
    model: Model, database: RetrievalDatabase, photograph: Path, tmp_path: Path
) -> None:
    mask = mask_of(model, tmp_path / "mask.png")
    start = StartRequest(image=str(photograph), mask=str(mask))
    original, half = open_start(start, model).pixels, side_of(model) // 2
    assert original is not None
    first, second = drawn(start, model, database, tmp_path / "out", seeds="1-2")
    for one in (first, second):
        assert np.array_equal(one[:, :half], original[:, :half])
        assert not np.array_equal(one[:, half:], original[:, half:])
    assert not np.array_equal(first[:, half:], second[:, half:])


def test_a_cell_of_latents_is_kept_only_where_all_of_its_pixels_are(
    model: Model, photograph: Path, tmp_path: Path
) -> None:
    side = side_of(model)
    values = np.zeros((2 * side, 2 * side), np.uint8)
    values[:2, :2] = 255  # one pixel of the model's size
    Image.fromarray(values).save(tmp_path / "dot.png")
    opened = open_start(StartRequest(image=str(photograph), mask=str(tmp_path / "dot.png")), model)
    assert opened.kept is not None
    assert opened.keep is not None
    assert (~opened.kept).sum() == 1
    assert (~opened.keep).sum() == 1
    assert not opened.keep[0, 0, 0, 0]


def test_noise_is_turned_from_one_seed_to_another(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    def at(fraction: float) -> NDArray[np.uint8]:
        start = StartRequest(towards=2, fraction=fraction)
        return drawn(start, model, database, tmp_path / str(fraction))[0]

    first = drawn(None, model, database, tmp_path / "first", seeds="1")[0]
    second = drawn(None, model, database, tmp_path / "second", seeds="2")[0]
    assert np.array_equal(at(0.0), first)
    assert np.array_equal(at(1.0), second)
    assert 0 < distance(at(0.25), first) < distance(at(0.25), second)


def test_the_start_of_a_picture_is_in_its_record_without_its_folder(
    model: Model, database: RetrievalDatabase, photograph: Path, tmp_path: Path
) -> None:
    start = StartRequest(image=str(photograph), strength=0.4)
    drawn(start, model, database, tmp_path / "out")
    record = read_recipe(tmp_path / "out" / "00000.png").start
    assert record is not None
    assert (record.image, record.strength) == ("start.png", 0.4)
    assert len(record.image_sha256 or "") == 64


def test_another_start_is_another_request(
    model: Model, database: RetrievalDatabase, photograph: Path, tmp_path: Path
) -> None:
    drawn(StartRequest(image=str(photograph), strength=0.4), model, database, tmp_path / "out")
    with pytest.raises(UsageError, match="another request: start differ"):
        drawn(StartRequest(image=str(photograph), strength=0.5), model, database, tmp_path / "out")


def test_a_mask_of_another_size_is_refused_by_its_size_and_leaves_no_folder(
    model: Model, database: RetrievalDatabase, photograph: Path, tmp_path: Path
) -> None:
    mask = mask_of(model, tmp_path / "mask.png", (20, 10))
    start, side = StartRequest(image=str(photograph), mask=str(mask)), side_of(model) * 2
    with pytest.raises(UsageError, match=f"the mask has 20 x 10 pixels.*{side} x {side}") as error:
        drawn(start, model, database, tmp_path / "out")
    assert error.value.where == str(mask)
    assert not (tmp_path / "out").exists()


def test_a_mask_that_keeps_everything_is_refused(
    model: Model, photograph: Path, tmp_path: Path
) -> None:
    side = side_of(model) * 2
    Image.new("L", (side, side)).save(tmp_path / "black.png")
    start = StartRequest(image=str(photograph), mask=str(tmp_path / "black.png"))
    with pytest.raises(UsageError, match="black everywhere"):
        open_start(start, model)


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_file_that_is_no_picture_is_refused(
    name: str, model: Model, photograph: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    files = {"image": str(photograph), "mask": str(photograph), name: str(tmp_path / "text.png")}
    with pytest.raises(SourceError, match="cannot be read"):
        open_start(StartRequest.model_validate(files), model)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strength": 0.5}, "a strength needs the picture"),
        ({"mask": "m.png"}, "a mask needs the picture"),
        ({"image": "a.png", "fraction": 0.3}, "a fraction needs the seed"),
        ({}, "a start names a picture, or a seed"),
        ({"image": "a.png", "strength": 1.5}, "less than or equal to 1"),
        ({"towards": -1}, "greater than or equal to 0"),
    ],
)
def test_half_a_start_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StartRequest.model_validate(values)
    with pytest.raises(UsageError, match=words):
        request_of({"texts": ["a"], "start": values})


def test_a_start_survives_its_own_json() -> None:
    for start in (StartRequest(image="a.png"), StartRequest(towards=3)):
        request = Request(texts=("a",), start=start)
        assert request_of(request.model_dump(mode="json")) == request


def test_a_mask_starts_in_noise_and_a_picture_alone_does_not() -> None:
    assert StartRequest(image="a", mask="b").acting_strength == 1.0
    assert StartRequest(image="a").acting_strength == 0.8
    assert StartRequest(image="a", mask="b", strength=0.3).acting_strength == 0.3
    assert StartRequest(towards=1).acting_strength is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"outpaint": 3}, "a margin to outpaint needs the picture"),
        ({"invert": True}, "an inversion needs the picture"),
        ({"image": "a.png", "mask": "m.png", "outpaint": 3}, "give one of them"),
        ({"image": "a.png", "invert": True, "strength": 0.5}, "a strength says nothing"),
        ({"image": "a.png", "invert": True, "outpaint": 3}, "a margin to outpaint says nothing"),
        ({"image": "a.png", "outpaint": -1}, "greater than or equal to 0"),
    ],
)
def test_starts_that_say_two_things_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        request_of({"texts": ["a"], "start": values, "settings": {"eta": 0.0}})


@pytest.mark.parametrize("settings", [{}, {"eta": 0.5}, {"sampler": "dpm++2m"}])
def test_an_inversion_is_drawn_without_noise(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="by ddim without noise: set sampler=ddim and eta=0"):
        request_of({"texts": ["a"], "start": {"image": "a", "invert": True}, "settings": settings})


def test_a_wide_picture_is_outpainted_whole(model: Model, tmp_path: Path) -> None:
    side = side_of(model)
    values = np.zeros((30, 60, 3), np.uint8)
    values[:, :6] = 255  # lost in the middle square
    Image.fromarray(values).save(tmp_path / "wide.png")
    start = StartRequest(image=str(tmp_path / "wide.png"), outpaint=0)
    opened = open_start(start, model)
    assert opened.pixels is not None
    assert opened.kept is not None
    rows = np.flatnonzero(opened.kept.any(axis=1))
    assert (len(rows), rows[0]) == (side // 2, side // 4)
    assert opened.kept.any(axis=0).all()
    assert (opened.pixels[side // 2, 0] > 200).all()


@pytest.mark.parametrize(("margin", "words"), [(10_000, "no room for"), (0, "fills all")])
def test_a_margin_that_leaves_no_picture_or_nothing_to_draw_is_refused(
    margin: int, words: str, model: Model, photograph: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        open_start(StartRequest(image=str(photograph), outpaint=margin), model)


def test_a_margin_that_leaves_no_whole_cell_is_refused(model: Model, photograph: Path) -> None:
    side, factor = side_of(model), side_of(model) // model.config.network.sample_shape[-1]
    margin = (side - factor) // 2 + 1
    with pytest.raises(UsageError, match="nothing is left of the picture"):
        open_start(StartRequest(image=str(photograph), outpaint=margin), model)


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_start_that_is_not_there_is_refused_by_its_name(
    model: Model, photograph: Path, tmp_path: Path, name: str
) -> None:
    files = {"image": str(photograph), "mask": str(photograph), name: str(tmp_path / "gone.png")}
    with pytest.raises(SourceError, match="cannot be read|does not exist"):
        open_start(StartRequest.model_validate(files), model)
