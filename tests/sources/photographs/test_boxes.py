from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rdm.errors import SourceError, UsageError
from rdm.sources import QuerySet, QuerySetConfig, decode_image, open_source
from rdm.sources.open import open_boxes
from rdm.sources.photographs.boxes import BoxConfig, Boxes, box_patches
from rdm.sources.photographs.crops import CropConfig
from rdm.sources.photographs.decode import image_orientation

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def row(
    image_id: str, box: tuple[float, float, float, float], label: str = "/m/a", group: int = 0
) -> str:
    x0, y0, x1, y1 = box
    return f"{image_id},xclick,{label},1,{x0},{x1},{y0},{y1},0,0,{group},0,0"


def test_boxes_are_read_sorted_without_repeats_and_groups(tmp_path: Path) -> None:
    box, other = (0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.5, 0.5)
    rows = [
        row("b", box),
        row("a", box),
        row("a", other, "/m/b"),
        row("a", box),
        row("a", other, group=1),
    ]
    boxes = Boxes(write(tmp_path / "boxes.csv", *rows), BoxConfig())
    corners, labels = boxes.of("a")
    assert (corners.tolist(), labels) == ([list(other), list(box)], ["/m/b", "/m/a"])
    assert boxes.of("b")[0].tolist() == [list(box)]
    assert boxes.of("c")[0].shape == (0, 4)


def test_path_of_the_table_is_absolute_so_that_an_update_elsewhere_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert BoxConfig(path="boxes.csv").path == f"{tmp_path}/boxes.csv"
    assert BoxConfig().path == ""


def test_labels_and_attributes_select(tmp_path: Path) -> None:
    path = write(
        tmp_path / "b.csv", row("a", (0, 0, 1, 1)), row("a", (0, 0, 0.5, 1), "/m/b", group=1)
    )
    assert Boxes(path, BoxConfig(skip=())).of("a")[1] == ["/m/b", "/m/a"]
    assert Boxes(path, BoxConfig(skip=(), labels=("/m/b",))).of("a")[1] == ["/m/b"]
    assert Boxes(path, BoxConfig(labels=("/m/b",))).of("a")[1] == []


def test_parquet_in_pixels(tmp_path: Path) -> None:
    columns = {"image_id": ["a", "a"], "x0": [30, 10], "y0": [0, 0], "x1": [40, 20], "y1": [10, 10]}
    pq.write_table(pa.table(columns), tmp_path / "boxes.parquet")
    boxes = Boxes(tmp_path / "boxes.parquet", BoxConfig())
    assert boxes.in_pixels
    assert boxes.of("a")[0].tolist() == [[10, 0, 20, 10], [30, 0, 40, 10]]
    assert boxes.of("a")[1] == ["", ""]


def test_listing_keeps_what_has_boxes_and_its_etag_changes_with_them(
    tmp_path: Path, photos: Path
) -> None:
    listing = open_source(f"folder://{photos}").listing()
    before, after = (
        Boxes(
            write(
                tmp_path / "b.csv", row("p03.jpg", (0, 0, 1, 1)), row("p05.jpg", (0, 0, 0.5, side))
            ),
            BoxConfig(),
        )
        .annotate(listing)
        .to_pydict()
        for side in (0.5, 0.75)
    )
    assert before["image_id"] == after["image_id"] == ["p03.jpg", "p05.jpg"]
    assert before["etag"][0] == after["etag"][0]
    assert before["etag"][1] != after["etag"][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ImageID,XMin,XMax,YMin\na,0,1,0\n", "no image id or no corners"),
        ("XMin,XMax,YMin,YMax\n0,1,0,1\n", "no image id or no corners"),
        ("ImageID,XMin,XMax,YMin,YMax\na,0,1,0,left\n", "a corner of a box is no number"),
        ("", "cannot be read"),
    ],
)
def test_unusable_tables_are_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        Boxes(tmp_path / "boxes.csv", BoxConfig())


def test_source_without_boxes_asks_for_a_table(photos: Path) -> None:
    with pytest.raises(UsageError, match="no boxes of its own") as caught:
        open_boxes(open_source(f"folder://{photos}"), BoxConfig())
    assert caught.value.fix == "--set boxes.path=FILE"


def test_open_images_boxes_lie_below_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "v5").mkdir()
    write(tmp_path / "v5" / "validation-annotations-bbox.csv", row("a", (0, 0, 1, 1)))
    boxes = open_boxes(open_source(f"openimages://validation?metadata={tmp_path}"), BoxConfig())
    assert boxes.of("a")[0].tolist() == [[0, 0, 1, 1]]
    with pytest.raises(SourceError, match="cannot be told from a metadata CSV"):
        open_boxes(open_source(f"openimages://validation?metadata={tmp_path}/x.csv"), BoxConfig())


def test_open_images_boxes_come_from_the_web(
    server: Any, answer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDM_CACHE", str(tmp_path / "cache"))
    table = f"{HEADER}\n{row('a', (0, 0, 1, 1))}\n".encode()
    server.serve("/v5/validation-annotations-bbox.csv", answer(table))
    boxes = open_boxes(open_source(f"openimages://validation?metadata={server.url}"), BoxConfig())
    assert boxes.of("a")[0].tolist() == [[0, 0, 1, 1]]


def test_rows_that_hide_behind_a_quote_are_an_error(tmp_path: Path) -> None:
    rows = [row(name, (0, 0, 1, 1)) for name in "abcdef"]
    path = write(tmp_path / "b.csv", *rows[:2], f'"{rows[2]}', rows[3], f'{rows[4]}"', rows[5])
    with pytest.raises(
        SourceError, match="the quote that opens in line 4 closes in line 6, and the lines"
    ):
        Boxes(path, BoxConfig())
    write(
        path,
        rows[0],
        rows[1].replace("/m/a", '"/m/a'),
        rows[2],
        rows[3].replace("/m/a", '/m/a"'),
        rows[4],
    )
    with pytest.raises(
        SourceError, match="the quote that opens in line 3 closes in line 5, and the lines"
    ):
        Boxes(path, BoxConfig())


def test_query_sets_are_not_cut_by_boxes(photos: Path) -> None:
    with pytest.raises(UsageError, match="not cut by boxes"):
        QuerySet(QuerySetConfig(source=f"folder://{photos}", crop=CropConfig(mode="boxes")))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("exif", range(1, 9))
def test_boxes_turn_with_their_photograph(rotation: int, exif: int) -> None:
    stored = np.random.default_rng(exif).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    stored[2:5, 1:4] = 255  # the box, of pixels that no other place has
    tag, buffer = Image.Exif(), io.BytesIO()
    tag[0x0112] = exif
    Image.fromarray(np.where(stored == 255, 255, stored // 2).astype(np.uint8)).save(
        buffer, "PNG", exif=tag
    )
    upright = decode_image(buffer.getvalue(), rotation=rotation)
    orientation = image_orientation(buffer.getvalue(), rotation=rotation)
    for corners, in_pixels in (([0.1, 2 / 6, 0.4, 5 / 6], False), ([1, 2, 4, 5], True)):
        patches = box_patches(
            np.array([corners]), upright.size, orientation, in_pixels=in_pixels, square=False
        )
        assert np.asarray(upright.crop(tuple(patches[0].tolist()))).min() == 255
        assert (patches[0, 2:] - patches[0, :2]).tolist() == [3, 3]


@given(
    corners=st.lists(st.floats(-0.5, 1.5) | st.just(float("nan")), min_size=4, max_size=4),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    orientation=st.integers(1, 8),
)
def test_squares_lie_in_the_photograph_around_their_box(
    corners: list[float], width: int, height: int, orientation: int
) -> None:
    def cut(square: bool) -> np.ndarray:
        size = (width, height)
        return box_patches(np.array([corners]), size, orientation, in_pixels=False, square=square)[
            0
        ]

    tight, patch = cut(False), cut(True)
    sides = patch[2:] - patch[:2]
    assert sides[0] == sides[1]
    assert (patch >= 0).all()
    assert patch[2] <= width
    assert patch[3] <= height
    extent = tight[2:] - tight[:2]
    if min(extent) > 0 and max(extent) <= min(width, height):
        assert sides[0] == max(extent)
        assert (patch[:2] <= tight[:2]).all()
        assert (patch[2:] >= tight[2:]).all()


def test_rounding_is_that_of_pixels(encoded: Callable[..., bytes]) -> None:
    patch = box_patches(
        np.array([[0.1, 0.1, 0.5, 0.5]]), (48, 40), 1, in_pixels=False, square=False
    )
    assert patch.tolist() == [[5, 4, 24, 20]]
    assert patch.dtype == np.int32
