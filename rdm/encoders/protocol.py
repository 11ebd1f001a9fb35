"""The protocol of image and text encoders, and the fingerprint that makes embeddings comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image

from rdm.config import Config, digest_json
from rdm.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]
Precision = Literal["float32", "bfloat16"]
"""Number format of an image tower's weights and activations; embeddings are always float32."""


class EncoderFingerprint(Config):
    """Everything that changes an embedding: encoders of equal digests are interchangeable.

    The digest leaves `name` out: the same weights in another folder are the same encoder.
    """

    name: str
    """The user's name for the encoder, for example `assets://encoder-lite`."""
    architecture: str
    """The networks, for example `efficientnet-lite0+minilm-l6`."""
    weights_digest: str
    """The first 16 hexadecimal digits of a SHA-256 over every weight, names and shapes included."""
    activation: str
    """The activation function: QuickGELU and GELU weights look alike and differ."""
    image_size: int
    """Side of the square input, pixels."""
    interpolation: Interpolation
    crop: Literal["squash", "center"]
    """How a photograph becomes square: `squash` resizes both sides, `center` cuts."""
    mean: tuple[float, float, float]
    """Subtracted from pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Divides the pixels afterwards."""
    pooling: str
    """The way in which a grid of features becomes one vector."""
    embedding_dim: int
    unit_norm_for_search: bool = True
    """Whether search compares unit vectors; the encoder itself always returns raw ones."""

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change whenever a field other than `name` does."""
        return digest_json(self.model_dump(mode="json", exclude={"name"}))


class Encoder(Protocol):
    """An image tower and a text tower with one embedding space."""

    @property
    def fingerprint(self) -> EncoderFingerprint:
        """The identity of the encoder."""
        ...

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding."""
        ...

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Return one picture as uint8 [3, S, S], resized and cropped, in any thread (no torch)."""
        ...

    def encode_images(self, batch: Tensor | np.ndarray) -> np.ndarray:
        """Return raw embeddings float32 [B, D] of preprocessed pictures uint8 [B, 3, S, S]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return raw embeddings float32 [B, D] of texts."""
        ...


def normalize(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings [..., D] scaled to unit length, float32.

    Raises:
        UsageError: a vector is zero or holds NaN or infinity; there is no direction to search in.
    """
    # Lengths in float64: the squares of large float32 numbers may overflow.
    vectors = np.asarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)

    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        rows = np.flatnonzero(bad.reshape(-1))
        raise UsageError(
            f"{len(rows)} embedding(s) are zero or not finite, the first is row {rows[0]}",
            fix="look for a blank picture or a broken checkpoint",
        )
    return (vectors / norms).astype(np.float32)


def to_square(image: Image.Image, fingerprint: EncoderFingerprint) -> np.ndarray:
    """Return a picture as uint8 [3, S, S] RGB, squashed or center-cropped by the fingerprint."""
    size = fingerprint.image_size
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    box = (0.0, 0.0, float(rgb.width), float(rgb.height))

    if fingerprint.crop == "center":
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        box = (left, top, left + side, top + side)

    # One resize of the box, so that no pixel is interpolated twice.
    if rgb.size != (size, size) or box[2] - box[0] != size:
        rgb = rgb.resize((size, size), Image.Resampling[fingerprint.interpolation.upper()], box=box)
    return np.ascontiguousarray(np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1))
