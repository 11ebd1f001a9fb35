"""What identifies a picture: the digest of its pixels, whatever file they are in."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of pixels uint8 [H, W, 3], row after row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
