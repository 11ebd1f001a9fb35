import base64
import io

import numpy as np
import pytest
from PIL import Image

from rdm.report.data import Neighbor, Query, Sample
from rdm.report.html.images import data_uri, is_pixel_art


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_small_picture_is_a_lossless_png() -> None:
    pixels = noise(64)
    uri = data_uri(pixels)
    assert uri.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(decoded(uri)), pixels)


def test_photograph_is_a_jpeg_of_its_own_size() -> None:
    uri = data_uri(noise(120))
    assert uri.startswith("data:image/jpeg;base64,")
    assert decoded(uri).size == (120, 120)


def test_large_picture_is_scaled_down_and_keeps_its_shape() -> None:
    assert decoded(data_uri(np.zeros((1000, 2000, 3), dtype=np.uint8))).size == (384, 192)


def test_same_pixels_give_the_same_uri() -> None:
    assert data_uri(noise(120)) == data_uri(noise(120))


def test_only_tiny_pictures_are_shown_as_squares() -> None:
    assert is_pixel_art(noise(32))
    assert not is_pixel_art(noise(64))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((3, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(pixels: np.ndarray) -> None:
    for build in (
        data_uri,
        lambda p: Neighbor(p, 0.5, 1),
        lambda p: Sample(p, 0),
        lambda p: Query("image", pixels=p),
    ):
        with pytest.raises(ValueError, match="a picture"):
            build(pixels)


def test_image_query_needs_pixels() -> None:
    with pytest.raises(ValueError, match="needs pixels"):
        Query("image")
