from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from rdm.database import pixels as photos
from rdm.storage import Folder


@pytest.mark.parametrize("iterate", [photos.iterate_patches, photos.iterate_reduced_patches])
def test_one_photograph_is_held_at_a_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    iterate: Callable[[Folder, pa.Table], Iterator[Image.Image]],
) -> None:
    """Decoding a large one takes a gigabyte."""
    made: list[weakref.ref[Image.Image]] = []

    def decode(*_: object) -> Image.Image:
        assert all(earlier() is None for earlier in made)
        image = Image.new("RGB", (8, 8))
        made.append(weakref.ref(image))
        return image

    places: dict[str, Any] = {"width": [8] * 3}
    monkeypatch.setattr(photos, "_decode", decode)
    monkeypatch.setattr(photos, "_places", lambda *_: places)
    corners = {"x0": [0] * 3, "y0": [0] * 3, "x1": [4] * 3, "y1": [4] * 3}
    patches = pa.table({"image_shard": ["00000"] * 3, "image_row": [0, 1, 2], **corners})
    assert [patch.size for patch in iterate(Folder(tmp_path), patches)] == [(4, 4)] * 3
    assert len(made) == 3
