"""Vectors of queries in words: texts, and class names as several prompts.

Each text is encoded by itself: the last bits of its vector depend on how many are encoded at once,
and a picture must not depend on what else a request asks. (Encoders see to it for pictures.)
"""

from __future__ import annotations

from collections.abc import Sequence

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
    vectors = normalize(text_vectors(encoder, texts)).reshape(len(names), len(PROMPTS), -1)
    return normalize(vectors.mean(axis=1))


def text_vectors(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the embeddings [N, D] of texts, at the encoder's own length."""
    return np.concatenate([encoder.encode_texts([text]) for text in texts])
