# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdm import RetrievalPipeline
from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.sampling import Model
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.picture_file import png_bytes
from rdm.sampling.reproduce import Given

QUICK: dict[str, Any] = {"k": 2, "num_inference_steps": 3, "seeds": [5]}


@pytest.fixture(scope="module")
def pipe(model: Model, database: RetrievalDatabase) -> RetrievalPipeline:
    return RetrievalPipeline(model, database)


@pytest.fixture(scope="module")
def photograph(database: RetrievalDatabase) -> Image.Image:
    return database.pixels(np.array([3]))[0].resize((32, 32))


def pixels(out: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in out.images])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_variations_are_drawn_from_the_pictures_neighbors(
    pipe: RetrievalPipeline, photograph: Image.Image
) -> None:
    out = pipe.variations(photograph, **{**QUICK, "seeds": [1, 2]})
    assert np.array_equal(pixels(out), pixels(pipe(image=photograph, **{**QUICK, "seeds": [1, 2]})))
    assert not np.array_equal(*pixels(out))


def test_an_interpolation_begins_and_ends_in_its_queries(pipe: RetrievalPipeline) -> None:
    # Without the noise of steps, which is each seed's own.
    still = {**QUICK, "eta": 0.0}
    outputs = pipe.interpolate("a", "b", [0.0, 0.5, 1.0], start={"towards": 6}, **still)
    ends = pixels(pipe("a", **still)), pixels(pipe("b", **{**still, "seeds": [6]}))
    assert np.array_equal(pixels(outputs[0]), ends[0])
    assert np.array_equal(pixels(outputs[2]), ends[1])
    middle = outputs[1].recipes[0]
    assert (middle.query.turn.text, middle.query.turn.fraction) == ("b", 0.5)
    assert (middle.start.towards, middle.start.fraction) == (6, 0.5)


def test_a_picture_is_interpolated_with_a_picture(
    pipe: RetrievalPipeline, photograph: Image.Image, database: RetrievalDatabase
) -> None:
    other = database.pixels(np.array([6]))[0]
    (out,) = pipe.interpolate(photograph, other, [1.0], **QUICK)
    assert np.array_equal(pixels(out), pixels(pipe.variations(other, **QUICK)))
    assert out.recipes[0].query.turn.image_sha256 == pixels_digest(np.asarray(other))


def test_a_text_difference_is_recorded(pipe: RetrievalPipeline, photograph: Image.Image) -> None:
    turn = pipe.text_difference(photograph, "snow", "sun", **QUICK).recipes[0].query.turn
    assert (turn.text, turn.away, turn.fraction) == ("snow", "sun", 0.3)


def test_inpainting_keeps_what_is_black(pipe: RetrievalPipeline, photograph: Image.Image) -> None:
    values = np.zeros((32, 32), np.uint8)
    values[:, 16:] = 255
    (drawn,) = pixels(pipe.inpaint("a", photograph, Image.fromarray(values), **QUICK))
    assert np.array_equal(drawn[:, :16], np.asarray(photograph)[:, :16])
    assert not np.array_equal(drawn[:, 16:], np.asarray(photograph)[:, 16:])


def test_outpainting_keeps_the_shrunk_picture_in_the_middle(
    pipe: RetrievalPipeline, photograph: Image.Image
) -> None:
    (drawn,) = pixels(pipe.outpaint("a", photograph, 8, **QUICK))
    shrunk = np.asarray(photograph.resize((16, 16), Image.Resampling.LANCZOS))
    assert np.array_equal(drawn[8:24, 8:24], shrunk)


def test_a_strength_makes_the_picture_the_start_as_in_diffusers(
    pipe: RetrievalPipeline, photograph: Image.Image
) -> None:
    out = pipe("an owl", image=photograph, strength=0.7, **QUICK)
    assert out.recipes[0].query.kind == "text"
    assert out.recipes[0].start.strength == 0.7
    assert out.recipes[0].start.image_pixels_sha256 == pixels_digest(np.asarray(photograph))
    alone = pipe(image=photograph, strength=0.7, **QUICK)
    assert alone.recipes[0].query.kind == "image"


def test_a_reconstruction_is_the_pictures_own_and_no_seeds(
    pipe: RetrievalPipeline, photograph: Image.Image
) -> None:
    settings: dict[str, Any] = {"k": 2, "num_inference_steps": 4}
    out = pipe.reconstruct(photograph, seeds=[0, 1], settings={"batch_size": 2}, **settings)
    first, second = pixels(out)
    assert np.array_equal(first, second)
    drawn = pixels(pipe(image=photograph, seeds=[0], eta=0.0, guidance_scale=1.0, **settings))
    assert not np.array_equal(first, drawn[0])
    recipe = out.recipes[0]
    assert recipe.start.invert
    assert (recipe.settings["eta"], recipe.settings["guidance_scale"]) == (0.0, 1.0)


def test_an_inverted_picture_is_noise_of_the_models_shape(
    pipe: RetrievalPipeline, model: Model, photograph: Image.Image
) -> None:
    noise = pipe.invert(photograph, k=2, num_inference_steps=10)
    assert tuple(noise.shape) == (1, *model.config.network.sample_shape)
    assert noise.isfinite().all()


def test_the_neighbors_of_an_inversion_are_credited(
    pipe: RetrievalPipeline, photograph: Image.Image
) -> None:
    out = pipe("b", start={"image": photograph, "invert": True}, **QUICK)
    own = pipe.variations(photograph, **QUICK).recipes[0].neighbors
    recipe = out.recipes[0]
    assert [one.patch_id for one in recipe.inversion.neighbors] == [one.patch_id for one in own]
    assert {one.image_id for one in own} <= {one.image_id for one in recipe.looked_at}
    assert all(one.image_id in out.credits() for one in own)


def test_a_drawing_from_an_open_picture_is_reproduced_from_a_file_of_it(
    pipe: RetrievalPipeline, photograph: Image.Image, tmp_path: Path
) -> None:
    out = pipe.outpaint("a", photograph, 8, **QUICK)
    place = tmp_path / "drawn.png"
    place.write_bytes(png_bytes(np.asarray(out.images[0]), out.recipes[0]))
    with pytest.raises(UsageError, match="whose start is not in the recipe"):
        pipe.reproduce(place)
    photograph.save(tmp_path / "start.bmp")
    assert pipe.reproduce(place, Given(start=tmp_path / "start.bmp"))[1].identical


def test_two_pictures_with_one_strength_are_refused(
    pipe: RetrievalPipeline, photograph: Image.Image
) -> None:
    with pytest.raises(UsageError, match="2 pictures are given with a strength"):
        pipe("a", image=[photograph, photograph], strength=0.5)
    with pytest.raises(UsageError, match="strength is given twice"):
        pipe("a", image=photograph, strength=0.5, start={"strength": 0.2})
