from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from rdm.database.contract import image_paths
from rdm.database.pixels import iterate_patches, iterate_reduced_patches
from rdm.storage import Folder

SIZE = (48, 40)  # of the photographs; patches are smaller


class CountingFolder(Folder):
    """Counts the decoded photographs that are held when the next one is looked for."""

    def __init__(self, url: Path) -> None:
        super().__init__(url)
        self.held: list[int] = []

    def local(self, path: str) -> Path:
        images = [thing for thing in gc.get_objects() if issubclass(type(thing), Image.Image)]
        self.held.append(sum(image.size == SIZE for image in images))
        return super().local(path)


@pytest.mark.parametrize("iterate", [iterate_patches, iterate_reduced_patches])
def test_one_photograph_is_held_at_a_time(
    tmp_path: Path,
    encoded: Callable[..., bytes],
    iterate: Callable[[Folder, pa.Table], Iterator[Image.Image]],
) -> None:
    """Decoding a large one takes a gigabyte."""
    folder, (tar, ledger, *_) = CountingFolder(tmp_path), image_paths("00000")
    photographs = [encoded(seed, size=SIZE) for seed in range(3)]
    sizes = [len(data) for data in photographs]
    folder.write_bytes(tar, b"".join(photographs))
    places = {"tar_offset": [0, sizes[0], sizes[0] + sizes[1]], "num_bytes": sizes}
    folder.write_table(ledger, pa.table({**places, "rotation": [0] * 3, "width": [48] * 3}))
    before = len(folder.held)
    corners = {"x0": [0] * 3, "y0": [0] * 3, "x1": [4] * 3, "y1": [4] * 3}
    patches = pa.table({"image_shard": ["00000"] * 3, "image_row": [0, 1, 2], **corners})
    assert [patch.size for patch in iterate(folder, patches)] == [(4, 4)] * 3
    assert folder.held[before:] == [0] * 3
