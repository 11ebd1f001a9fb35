"""Cut patches from the photographs of a database: pixels are read when they are needed, by offset."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from PIL import Image

from rdm.errors import DatabaseError
from rdm.sources import ImageDecodeError, decode_image
from rdm.storage import Folder
from rdm.storage.files import read_error

_Places = tuple[list[int], list[int]]  # offset and size of each row's picture in its tar


def iterate_patches(folder: Folder, patches: pa.Table) -> Iterator[Image.Image]:
    """Yield the pixels of each patch, in order; a photograph whose patches follow one another is decoded once.

    Raises:
        DatabaseError: a stored photograph no longer decodes.
    """
    ledgers: dict[str, _Places] = {}
    previous, photograph = (None, None), None
    for row in patches.select(["image_shard", "image_row", "x0", "y0", "x1", "y1"]).to_pylist():
        place = (row["image_shard"], row["image_row"])
        if place != previous:
            if place[0] not in ledgers:
                ledgers[place[0]] = _places(folder, place[0])
            photograph, previous = _decode(folder, *place, ledgers[place[0]]), place
        assert photograph is not None
        yield photograph.crop((row["x0"], row["y0"], row["x1"], row["y1"]))


def read_photograph(folder: Folder, shard: str, row: int) -> Image.Image:
    """Return one stored photograph, upright RGB."""
    return _decode(folder, shard, row, _places(folder, shard))


def _decode(folder: Folder, shard: str, row: int, places: _Places) -> Image.Image:
    offsets, sizes = places
    path = folder.local(f"images/{shard}.tar")
    try:
        with open(path, "rb") as file:
            file.seek(offsets[row])
            data = file.read(sizes[row])
    except OSError as error:
        raise read_error(error, path) from error
    try:
        return decode_image(data)
    except ImageDecodeError as error:
        raise DatabaseError(
            f"a stored photograph does not decode: {error}", where=f"{path}, row {row}", fix="run `rdm database verify`"
        ) from error


def _places(folder: Folder, shard: str) -> _Places:
    table = folder.read_table(f"images/{shard}.parquet", columns=["tar_offset", "num_bytes"])
    return table.column("tar_offset").to_pylist(), table.column("num_bytes").to_pylist()
