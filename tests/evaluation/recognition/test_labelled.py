import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.errors import SourceError, UsageError
from rdm.evaluation.recognition.labelled import PictureSet, mosaic, read_classes


def test_names_are_numbered_by_their_places(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('["daisy", "rose"]')
    assert [(item.label, item.name, item.wnid) for item in read_classes(tmp_path / "c.json")] == [
        (0, "daisy", None),
        (1, "rose", None),
    ]


def test_objects_are_sorted_by_label(tmp_path: Path) -> None:
    rows = [{"label": 1, "name": "b", "wnid": "n2"}, {"label": 0, "name": "a", "wnid": "n1"}]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    assert [item.wnid for item in read_classes(tmp_path / "c.json")] == ["n1", "n2"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '["one"]',
        "[1, 2]",
        '[{"label": 0, "name": "a"}, {"label": 2, "name": "b"}]',
        '[{"label": 0, "name": "a"}, {"label": 0, "name": "b"}]',
        '[{"label": -1, "name": "a"}, {"label": 0, "name": "b"}]',
        '[{"label": 0, "nam": "a"}, {"label": 1, "name": "b"}]',
        '["a", {"label": 1, "name": "b"}]',
        "\xff",
    ],
)
def test_classes_that_are_no_list_of_them_are_a_usage_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as error:
        read_classes(path)
    assert error.value.where == str(path)


def test_missing_classes_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_classes(tmp_path / "none.json")


def test_pictures_have_the_labels_beside_them(
    tmp_path: Path, labelled_tar: Callable[..., Path]
) -> None:
    found = PictureSet(f"webdataset://{labelled_tar(tmp_path / 'a.tar', [2, 3])}")
    assert found.image_ids == ["c0-00", "c0-01", "c1-00", "c1-01", "c1-02"]
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert [rows.tolist() for rows in found.rows_of_classes(2)] == [[0, 1], [2, 3, 4]]


def test_pictures_of_a_folder_have_no_labels(photos: Path) -> None:
    assert set(PictureSet(f"folder://{photos}").labels.tolist()) == {-1}


def test_class_without_a_picture_is_named(
    tmp_path: Path, labelled_tar: Callable[..., Path]
) -> None:
    found = PictureSet(f"webdataset://{labelled_tar(tmp_path / 'a.tar', [2, 0, 1])}")
    with pytest.raises(SourceError, match="1 of 3 classes have no picture, first 1"):
        found.rows_of_classes(3)


def test_label_beyond_the_classes_is_named(
    tmp_path: Path, labelled_tar: Callable[..., Path]
) -> None:
    found = PictureSet(f"webdataset://{labelled_tar(tmp_path / 'a.tar', [1, 1, 1])}")
    with pytest.raises(SourceError, match="'c2-00' has label 2, but there are 2 classes"):
        found.rows_of_classes(2)


def test_squares_are_the_middle_of_pictures_reduced(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = (10, 200, 30)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = PictureSet(f"folder://{tmp_path}").squares([0], 8)
    assert found.shape == (1, 8, 8, 3)
    assert (found == np.array([10, 200, 30])).all()


def test_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(SourceError) as error:
        PictureSet(f"folder://{tmp_path}").squares([0], 8)
    assert error.value.where.endswith(" bad.jpg")


def test_urls_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://example.org/a.jpg\n")
    with pytest.raises(SourceError, match="behind URLs"):
        PictureSet(f"urls://{tmp_path}/list.txt")


def test_digest_changes_with_a_picture(tmp_path: Path, labelled_tar: Callable[..., Path]) -> None:
    one = PictureSet(f"webdataset://{labelled_tar(tmp_path / 'a.tar', [2, 2])}").digest
    other = PictureSet(f"webdataset://{labelled_tar(tmp_path / 'b.tar', [2, 3])}").digest
    assert one != other


def test_mosaic_keeps_means_and_loses_detail() -> None:
    squares = np.zeros((1, 16, 16, 3), np.uint8)
    squares[:, ::2] = 200
    found = mosaic(squares, 4)
    assert found.shape == squares.shape
    assert (found == 100).all()
