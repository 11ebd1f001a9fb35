"""Boxes that people drew on photographs: read from a table, and turned with their photograph."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from rdm.config import Config
from rdm.errors import SourceError
from rdm.sources.lists.list_files import read_list
from rdm.storage.files import absolute_path

Attribute = Literal["IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"]
_SHARES = ("xmin", "ymin", "xmax", "ymax")  # of the stored photograph's width and height
_PIXELS = ("x0", "y0", "x1", "y1")
_IDS, _LABELS = ("imageid", "image_id"), ("labelname", "label")


def _absolute(path: str) -> str:
    return absolute_path(path) if path else ""


class BoxConfig(Config):
    """Settings of the crop mode `boxes`: which boxes become patches, and in which shape."""

    path: Annotated[str, AfterValidator(_absolute)] = Field(
        default="",
        description="a .csv, .tsv or .parquet of boxes; empty: those that Open Images publishes",
    )
    labels: tuple[str, ...] = Field(
        default=(), description="only boxes with one of these labels; none: all boxes"
    )
    skip: tuple[Attribute, ...] = Field(
        default=("IsGroupOf",),
        description="boxes that have one of these attributes are passed over",
    )
    shape: Literal["square", "tight"] = Field(
        default="square",
        description="the smallest square around a box, shifted and cut to the photograph; or "
        "the box itself",
    )


class Boxes:
    """The boxes of many photographs.

    Columns of a table: `ImageID` or `image_id`; `XMin`, `YMin`, `XMax`, `YMax` as shares of width
    and height, or `x0`, `y0`, `x1`, `y1` in pixels; and if there are any `LabelName` or `label`,
    and the attributes. Both kinds of coordinates are those of the photograph as it is stored,
    before EXIF or Open Images' rotation makes it upright.

    Raises:
        SourceError: the table cannot be read, or lacks a column.
    """

    def __init__(self, path: Path, config: BoxConfig) -> None:
        # Pixels go before shares where a table has both.
        attributes = {name.lower() for name in get_args(Attribute)}
        found = read_list(path, {*_SHARES, *_PIXELS, *_IDS, *_LABELS, *attributes}).columns
        self.in_pixels = all(name in found for name in _PIXELS)
        corners = _PIXELS if self.in_pixels else _SHARES

        ids = next((found[name] for name in _IDS if name in found), None)
        if ids is None or any(name not in found for name in corners):
            raise SourceError(
                "the table of boxes has no image id or no corners",
                where=path,
                fix="columns ImageID, XMin, XMax, YMin, YMax (shares of width and height), "
                "or image_id, x0, y0, x1, y1",
            )

        nothing = pa.chunked_array([pa.repeat("", len(ids))])
        label = next((found[name] for name in _LABELS if name in found), nothing)
        table = pa.table({"image_id": ids, **_numbers(path, found, corners), "label": label})
        self._index(table.filter(_wanted(found, label, config)))

    def _index(self, table: pa.Table) -> None:
        """Sort the boxes by photograph, without repeats, and note where each one's begin."""
        table = table.sort_by([(name, "ascending") for name in table.column_names]).combine_chunks()
        is_new = {name: _differs_from_last(table[name]) for name in table.column_names}

        # In the sorted order a repeat equals the row before it in every column.
        table = table.filter(pa.array(np.logical_or.reduce(list(is_new.values()))))

        # Photographs are ranges of rows.
        starts = np.flatnonzero(_differs_from_last(table["image_id"]))
        ends = np.r_[starts[1:], table.num_rows]
        names = table["image_id"].take(pa.array(starts)).to_pylist()
        self._places = dict(
            zip(names, zip(starts.tolist(), ends.tolist(), strict=False), strict=True)
        )
        self._corners = np.stack([table[name].to_numpy() for name in _PIXELS], axis=1)
        self._labels = table["label"].combine_chunks()

    def of(self, image_id: str) -> tuple[NDArray[np.float64], list[str]]:
        """Return a photograph's boxes [P, 4] (x0, y0, x1, y1) and their labels, without repeats."""
        start, end = self._places.get(image_id, (0, 0))
        return self._corners[start:end].astype(np.float64), self._labels[start:end].to_pylist()

    def subset(self, image_ids: Sequence[str]) -> Boxes:
        """Return the boxes of some photographs, to send to a worker."""
        known = [image_id for image_id in image_ids if image_id in self._places]
        ranges = [np.arange(*self._places[image_id]) for image_id in known]
        rows = np.concatenate([np.zeros(0, np.int64), *ranges])
        ends = np.cumsum([0, *map(len, ranges)]).tolist()

        part = copy(self)
        part._places = dict(zip(known, itertools.pairwise(ends), strict=True))
        part._corners = self._corners[rows]
        part._labels = self._labels.take(pa.array(rows))
        return part

    def annotate(self, listing: pa.Table) -> pa.Table:
        """Return the rows of a listing that have boxes, with etags that change with their boxes."""
        known = pc.is_in(listing["image_id"], pa.array(list(self._places), pa.string()))
        listing = listing.filter(known)

        etags = [
            f"{etag} boxes:{self._digest(image_id)}"
            for image_id, etag in zip(
                listing["image_id"].to_pylist(), listing["etag"].to_pylist(), strict=True
            )
        ]
        column = listing.column_names.index("etag")
        return listing.set_column(column, "etag", pa.array(etags, pa.string()))

    def _digest(self, image_id: str) -> str:
        corners, labels = self.of(image_id)
        return xxhash.xxh3_64_hexdigest(corners.tobytes() + "\0".join(labels).encode())


def box_patches(
    corners: NDArray[np.float64],
    size: tuple[int, int],
    orientation: int,
    *,
    in_pixels: bool,
    square: bool,
) -> NDArray[np.int32]:
    """Return patches [P, 4] int32 (x0, y0, x1, y1) in pixels of the upright photograph.

    A box that is empty or not finite becomes a patch without area.

    Args:
        corners: boxes [P, 4] of the photograph as it is stored.
        size: width and height of the upright photograph, in pixels.
        orientation: the EXIF orientation, 1 to 8, that makes it upright.
        in_pixels: whether the boxes are in pixels; else they are shares of width and height.
        square: whether a patch is the smallest square around its box, no larger than the
            photograph's shortest side and shifted to lie in it.
    """
    # As shares of the stored photograph, whose sides are swapped from orientation 5 on.
    stored = np.array(size if orientation < 5 else size[::-1], np.float64)
    shares = corners / np.tile(stored, 2) if in_pixels else corners

    sound = (
        np.isfinite(shares).all(axis=1)
        & (shares[:, 0] < shares[:, 2])
        & (shares[:, 1] < shares[:, 3])
    )

    # Turned with the photograph, then to whole pixels.
    shares = np.clip(np.where(sound[:, None], shares, 0), 0, 1)
    pixels = np.floor(_turned(shares, orientation) * np.tile(np.array(size, np.float64), 2) + 0.5)

    if not square:
        return pixels.astype(np.int32)

    # The smallest square around the box, no larger than the photograph, moved inside.
    extent = pixels[:, 2:] - pixels[:, :2]
    side = np.minimum(extent.max(axis=1, keepdims=True), min(size))
    side = side * (extent.min(axis=1, keepdims=True) > 0)
    low = np.floor((pixels[:, :2] + pixels[:, 2:] - side) / 2 + 0.5)
    low = np.clip(low, 0, np.array(size) - side)
    return np.concatenate([low, low + side], axis=1).astype(np.int32)


def _turned(boxes: NDArray[np.float64], orientation: int) -> NDArray[np.float64]:
    """Return boxes [P, 4], shares of the stored photograph, as shares of the upright one."""
    x, y = boxes[:, 0::2], boxes[:, 1::2]  # [P, 2] each
    turned = {
        1: (x, y),
        2: (1 - x, y),
        3: (1 - x, 1 - y),
        4: (x, 1 - y),
        5: (y, x),
        6: (1 - y, x),
        7: (1 - y, 1 - x),
        8: (y, 1 - x),
    }[orientation]

    # A flip exchanges the ends of an interval.
    across, down = (np.sort(axis, axis=1) for axis in turned)
    return np.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], axis=1)


def _numbers(
    path: Path, found: dict[str, pa.ChunkedArray], corners: tuple[str, ...]
) -> dict[str, pa.ChunkedArray]:
    try:
        return {
            name: found[corner].cast(pa.float32())
            for name, corner in zip(_PIXELS, corners, strict=True)
        }
    except pa.ArrowInvalid as error:
        raise SourceError(
            "a corner of a box is no number", where=path, fix="mend the table"
        ) from error


def _differs_from_last(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return for each row of a sorted column whether it is the first of its value."""
    changes = pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return np.r_[np.ones(min(len(column), 1), np.bool_), changes.astype(np.bool_)]


def _wanted(
    found: dict[str, pa.ChunkedArray], label: pa.ChunkedArray, config: BoxConfig
) -> pa.ChunkedArray:
    keep = pc.is_valid(label)
    if config.labels:
        keep = pc.and_(keep, pc.is_in(label, pa.array(config.labels, pa.string())))
    for name in config.skip:
        if name.lower() in found:
            keep = pc.and_(
                keep, pc.invert(pc.is_in(found[name.lower()], pa.array(["1", "true", "True"])))
            )
    return keep
