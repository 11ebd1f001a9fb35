"""Class names in words: one vector of several prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rdm.encoders import Encoder, normalize

PROMPTS = (
    "{}",
    "a photo of a {}",
    "a close photo of a {}",
    "a picture of one {}",
    "a {} seen from afar",
    "a {} in its surroundings",
)
"""Plain, so that none leads to a style."""


def class_vectors(encoder: Encoder, names: list[str]) -> NDArray[np.float32]:
    """Return the mean of each name's prompts as unit vectors, [N, D]: no wording decides alone."""
    # An underscore is how lists of classes write a space.
    words = [name.replace("_", " ") for name in names]
    texts = [prompt.format(word) for word in words for prompt in PROMPTS]
    vectors = normalize(encoder.encode_texts(texts)).reshape(len(names), len(PROMPTS), -1)
    return normalize(vectors.mean(axis=1))
