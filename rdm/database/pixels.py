"""Cut patches from a database's photographs: pixels are read by offset when they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pyarrow as pa
from PIL import Image

from rdm.database.contract import CORNERS, image_paths
from rdm.errors import DatabaseError
from rdm.sources import ImageDecodeError, decode_image
from rdm.storage import Folder
from rdm.storage.atomic import read_error

REDUCED_SIDE = 64  # pixels that are enough to judge a patch's contrast
# Offset and size of each row's picture in its tar, its rotation and upright width.
_Places = dict[str, list[int]]


def iterate_patches(folder: Folder, patches: pa.Table) -> Iterator[Image.Image]:
    """Yield the pixels of each patch in order; consecutive patches share one decoded photograph.

    Raises:
        DatabaseError: a stored photograph no longer decodes.
    """
    ledgers: dict[str, _Places] = {}
    previous, photograph = (None, None), None
    for row in patches.select(["image_shard", "image_row", *CORNERS]).to_pylist():
        place = (row["image_shard"], row["image_row"])
        if place != previous:
            if place[0] not in ledgers:
                ledgers[place[0]] = _places(folder, place[0])
            photograph = None  # goes before the next is decoded: a large one has half a gigabyte
            photograph, previous = _decode(folder, *place, ledgers[place[0]]), place
        assert photograph is not None
        yield photograph.crop((row["x0"], row["y0"], row["x1"], row["y1"]))


def iterate_reduced_patches(folder: Folder, patches: pa.Table) -> Iterator[Image.Image]:
    """Yield a small picture of each patch, in order: 64 pixels a side or more, if it has them.

    A JPEG is decoded at a half, a quarter or an eighth of its size, where its smallest patch
    allows that.
    """
    columns = patches.select(["image_shard", "image_row", *CORNERS]).to_pylist()
    shards: dict[str, _Places] = {}
    for (shard, number), rows in itertools.groupby(
        columns, key=lambda row: (row["image_shard"], row["image_row"])
    ):
        # All patches of a photograph at once: the smallest decides the reduction.
        members = list(rows)
        if shard not in shards:
            shards[shard] = _places(folder, shard)
        places = shards[shard]
        side = min(min(row["x1"] - row["x0"], row["y1"] - row["y0"]) for row in members)
        reduction = next((step for step in (8, 4, 2) if side >= step * REDUCED_SIDE), 1)
        photograph = _decode(folder, shard, number, places, reduction)
        scale = photograph.width / places["width"][number]

        # Boxes are of the upright full-size photograph.
        for row in members:
            x0, y0, x1, y1 = (round(row[corner] * scale) for corner in CORNERS)
            yield photograph.crop((x0, y0, x1, y1))
        del photograph


def read_photograph(folder: Folder, shard: str, row: int) -> Image.Image:
    """Return one stored photograph, upright RGB."""
    return _decode(folder, shard, row, _places(folder, shard))


def _decode(
    folder: Folder, shard: str, row: int, places: _Places, reduction: int = 1
) -> Image.Image:
    """Read a photograph from its tar by offset, and decode it upright."""
    # Imported rows name a photograph, but no place of its bytes.
    if places["tar_offset"][row] is None:
        raise DatabaseError(
            "the pixels are not stored: only embeddings were imported",
            where=f"{folder.describe(image_paths(shard)[1])}, row {row}",
            fix="search and conditioning work without; for pictures, build a database from "
            "the photographs",
        )

    # One row of the tar by its offset: no index of members is read.
    path = folder.local(image_paths(shard)[0])
    try:
        with open(path, "rb") as file:
            file.seek(places["tar_offset"][row])
            data = file.read(places["num_bytes"][row])
    except OSError as error:
        raise read_error(error, path) from error

    try:
        return decode_image(data, rotation=places["rotation"][row], reduction=reduction)
    except ImageDecodeError as error:
        raise DatabaseError(
            f"a stored photograph does not decode: {error}",
            where=f"{path}, row {row}",
            fix="run `rdm database verify`",
        ) from error


def _places(folder: Folder, shard: str) -> _Places:
    columns = ["tar_offset", "num_bytes", "rotation", "width"]
    return folder.read_table(image_paths(shard)[1], columns).to_pydict()
