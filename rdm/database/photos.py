"""Cut patches from the photographs of a database: pixels are read when they are needed, by offset."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
from PIL import Image

from rdm.errors import DatabaseError
from rdm.sources import ImageDecodeError, decode_image
from rdm.storage import Folder


def iterate_patches(folder: Folder, patches: pa.Table) -> Iterator[Image.Image]:
    """Yield the pixels of each patch, in order; each photograph is decoded once when its patches are neighbors in the table.

    Raises:
        DatabaseError: a stored photograph no longer decodes.
    """
    previous, photograph = (None, None), None
    for row in patches.select(["image_shard", "image_row", "x0", "y0", "x1", "y1"]).to_pylist():
        place = (row["image_shard"], row["image_row"])
        if place != previous:
            photograph, previous = read_photograph(folder, *place), place
        assert photograph is not None
        yield photograph.crop((row["x0"], row["y0"], row["x1"], row["y1"]))


def read_photograph(folder: Folder, shard: str, row: int) -> Image.Image:
    """Return one stored photograph, upright RGB."""
    offsets, sizes = _places(folder.url, shard)
    path = folder.local(f"images/{shard}.tar")
    with open(path, "rb") as file:
        file.seek(offsets[row])
        data = file.read(sizes[row])
    try:
        return decode_image(data)
    except ImageDecodeError as error:
        raise DatabaseError(f"a stored photograph does not decode: {error}", where=f"{path}, row {row}",
                            fix="run `rdm database verify`") from error


@lru_cache(maxsize=64)
def _places(url: str, shard: str) -> tuple[list[int], list[int]]:
    table = Folder(url).read_table(f"images/{shard}.parquet", columns=["tar_offset", "num_bytes"])
    return table.column("tar_offset").to_pylist(), table.column("num_bytes").to_pylist()
