"""`assets://encoder-lite`: two frozen towers from PyPI wheels under this project's own heads.

It is not OpenAI's CLIP: it has seen 6,000 captioned photographs, understands English only, and is
made for samples, tests and first steps.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdm.encoders.chunks import encode_filled
from rdm.encoders.image_tower import (
    IMAGE_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    ImageTower,
    image_weights_file,
    load_image_tower,
)
from rdm.encoders.projection_heads import load_heads
from rdm.encoders.protocol import EncoderFingerprint, to_square
from rdm.encoders.text_tower import TextTower, load_text_tower, text_weights_folder
from rdm.errors import ModelError
from rdm.storage import sha256_file

# Pictures and texts encoded at once: the same number always, see `encode_filled`.
_PROCESSOR_CHUNK = 8
_ACCELERATOR_CHUNK = 128
_TEXT_CHUNK = 64


class LiteEncoder:
    """EfficientNet-Lite0 and MiniLM-L6 with projection heads; see `Encoder` for the methods.

    Args:
        directory: `heads.safetensors` and `config.json`, as `rdm train --recipe clip-lite` exports
            them.
        name: the user's name for the encoder.
        device: a torch device.
    """

    # Always float32: bfloat16 towers are no faster on a processor, and turn a picture's embedding
    # by a cosine of 0.998.

    def __init__(self, directory: Path, *, name: str, device: str = "cpu") -> None:
        self._heads = load_heads(directory).to(device)
        config = self._heads.config
        self._device = device

        # Everything that changes an embedding, for `EncoderFingerprint`.
        mean, std = PIXEL_MEAN / 255, PIXEL_STD / 255
        self._fingerprint = EncoderFingerprint(
            name=name,
            architecture=f"{config.image_tower}+{config.text_tower}",
            weights_digest=_digest(directory),
            activation="relu6",
            image_size=IMAGE_SIZE,
            interpolation="bicubic",
            crop="squash",
            mean=(mean, mean, mean),
            std=(std, std, std),
            pooling="+".join(config.image_parts),
            embedding_dim=config.embedding_dim,
        )

    @cached_property
    def _image_tower(self) -> ImageTower:
        """The image tower, opened for the first picture: a search in words needs none."""
        return load_image_tower().to(self._device)

    @cached_property
    def _text_tower(self) -> TextTower:
        """The text tower, opened for the first text: workers embed pictures alone."""
        # The first text may come inside of inference mode; weights must be ordinary tensors.
        with torch.inference_mode(False):
            return load_text_tower(self._heads.config.text_layers).to(self._device)

    @property
    def fingerprint(self) -> EncoderFingerprint:
        """See Encoder."""
        return self._fingerprint

    @property
    def embedding_dim(self) -> int:
        """See Encoder."""
        return self._fingerprint.embedding_dim

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """See Encoder. A picture that is not square is squashed, as in training."""
        return to_square(image, self._fingerprint)

    @torch.inference_mode()
    def encode_images(self, batch: Tensor | np.ndarray) -> np.ndarray:
        """See Encoder. A picture's embedding is the same, to the bit, in any batch."""
        return encode_filled(
            lambda pixels: self._heads.embed_images(self._image_tower(pixels)),
            torch.as_tensor(batch),
            _PROCESSOR_CHUNK if self._device == "cpu" else _ACCELERATOR_CHUNK,
            self.embedding_dim,
        )

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See Encoder. Only the first 64 word pieces of a text are read."""
        rows = [np.zeros((0, self.embedding_dim), np.float32)]
        for start in range(0, len(texts), _TEXT_CHUNK):
            features = self._text_tower(texts[start : start + _TEXT_CHUNK])
            rows.append(self._heads.embed_texts(features).cpu().numpy())
        return np.concatenate(rows)


def _digest(directory: Path) -> str:
    """Return 16 hexadecimal digits of all files that decide an embedding."""
    folder = text_weights_folder()
    files = (
        image_weights_file(),
        folder / "model.safetensors",
        folder / "tokenizer.json",
        directory / "heads.safetensors",
        directory / "config.json",
    )

    try:
        digests = "".join(sha256_file(path) for path in files)
        return hashlib.sha256(digests.encode()).hexdigest()[:16]
    except FileNotFoundError as error:
        raise ModelError(
            "a file of the embedded encoder is missing",
            where=error.filename,
            fix="install its packages again",
        ) from error


def bundled_directory() -> Path:
    """Return the folder of the heads that the package ships."""
    return Path(os.path.dirname(__file__)).parent / "assets" / "encoder-lite"
