"""Encoding of many pictures: a thread prepares the next batch while one is encoded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdm.encoders.protocol import Encoder

BatchT = TypeVar("BatchT")


def encode_images(
    encoder: Encoder, images: Iterator[Image.Image], batch_size: int
) -> NDArray[np.float32]:
    """Return the raw embeddings [N, dim] of pictures, holding two batches of pixels at a time.

    While a batch is encoded, a thread decodes the next.
    """
    # `iter` with a sentinel: batches until one is empty.
    prepared = iter(
        lambda: [encoder.preprocess(image) for image in itertools.islice(images, batch_size)], []
    )
    rows = [np.zeros((0, encoder.embedding_dim), np.float32)]
    rows += [encoder.encode_images(np.stack(batch)) for batch in _one_ahead(prepared)]
    return np.concatenate(rows)


def _one_ahead(batches: Iterator[BatchT]) -> Iterator[BatchT]:
    """Yield an iterator's items, each prepared in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch
