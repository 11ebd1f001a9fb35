"""Pictures that users ask with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rdm.errors import SourceError
from rdm.sampling.retrieval.queries import load_query_image


def test_query_with_a_long_text_is_taken_upright(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    info, tags = PngImagePlugin.PngInfo(), Image.Exif()
    info.add_text("parameters", "x=1 " * 600_000, zip=True)
    tags[0x0112] = 6
    picture(0).save(tmp_path / "q.png", pnginfo=info, exif=tags)
    np.testing.assert_array_equal(
        np.asarray(load_query_image(tmp_path / "q.png")), np.rot90(np.asarray(picture(0)), -1)
    )


def test_query_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.png").write_bytes(b"words")
    with pytest.raises(SourceError, match="cannot be read") as caught:
        load_query_image(tmp_path / "q.png")
    assert caught.value.where == str(tmp_path / "q.png")
