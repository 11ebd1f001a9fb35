import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from rdm.encoders import EncoderFingerprint, normalize
from rdm.encoders.protocol import to_square
from rdm.errors import UsageError


def fingerprint(**changes: object) -> EncoderFingerprint:
    fields = {
        "name": "assets://x",
        "architecture": "a",
        "weights_digest": "0" * 16,
        "activation": "gelu",
        "image_size": 8,
        "interpolation": "bicubic",
        "crop": "center",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "pooling": "average",
        "embedding_dim": 4,
    }
    return EncoderFingerprint.model_validate({**fields, **changes})


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8),
        elements=st.floats(0.125, 1e6, width=32),
    )
)
def test_normalized_vectors_have_unit_length(vectors: np.ndarray) -> None:
    np.testing.assert_allclose(np.linalg.norm(normalize(vectors), axis=1), 1.0, rtol=1e-5)


def test_normalizing_returns_float32() -> None:
    assert normalize(np.ones((2, 3), np.float16)).dtype == np.float32


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vector_without_direction_is_refused(bad: float) -> None:
    with pytest.raises(UsageError, match="the first is row 1"):
        normalize(np.stack([np.ones(3), np.full(3, bad)]))


def test_digest_changes_with_the_interpolation() -> None:
    assert fingerprint().digest() != fingerprint(interpolation="bilinear").digest()


def test_digest_does_not_change_with_the_name() -> None:
    assert fingerprint().digest() == fingerprint(name="lite:/elsewhere").digest()


def test_center_crop_leaves_the_long_side_out() -> None:
    image = Image.new("RGB", (24, 8), "black")
    image.paste("white", (8, 0, 16, 8))
    assert to_square(image, fingerprint()).min() == 255


def test_squash_keeps_the_long_side() -> None:
    image = Image.new("RGB", (24, 8), "black")
    image.paste("white", (8, 0, 16, 8))
    square = to_square(image, fingerprint(crop="squash"))
    assert square[0, 0, 0] == 0
    assert square[0, 0, 4] == 255


def test_picture_of_the_right_size_is_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(
        to_square(Image.fromarray(pixels), fingerprint()), pixels.transpose(2, 0, 1)
    )


def test_gray_picture_becomes_three_channels() -> None:
    assert to_square(Image.new("L", (10, 10)), fingerprint()).shape == (3, 8, 8)
