from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rdm.report.data import Draw, Query, QueryNeighbors, SampleGroup
from rdm.report.html.gallery import GallerySection, contact_sheet, write_gallery


def flat(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_contact_sheet_places_pictures_row_by_row() -> None:
    sheet = np.asarray(contact_sheet([flat(10), flat(20), flat(30)], 2, tile_side=8, gap=2))
    assert sheet.shape == (18, 18, 3)
    assert [sheet[0, 0, 0], sheet[0, 10, 0], sheet[10, 0, 0]] == [10, 20, 30]
    assert [sheet[10, 10, 0], sheet[0, 8, 0]] == [255, 255]


def test_contact_sheet_is_no_wider_than_its_pictures() -> None:
    assert contact_sheet([flat(1)], 8, tile_side=16).size == (16, 16)


def test_contact_sheet_centers_pictures_that_are_not_square() -> None:
    sheet = np.asarray(
        contact_sheet([flat(10, height=4, width=8)], 1, tile_side=8, background=(0, 0, 0))
    )
    assert sheet[:, 0, 0].tolist() == [0, 0, 10, 10, 10, 10, 0, 0]


def test_contact_sheet_repeats_pixels_for_a_whole_enlargement(examples: SimpleNamespace) -> None:
    pixels = examples.picture(0, side=4)
    sheet = np.asarray(contact_sheet([pixels], 1, tile_side=8))
    np.testing.assert_array_equal(sheet, pixels.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(("count", "columns"), [(0, 3), (3, 0)])
def test_contact_sheet_refuses_nothing(count: int, columns: int) -> None:
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet([flat(1)] * count, columns)


def test_gallery_shows_queries_beside_neighbors_and_samples(
    examples: SimpleNamespace, tmp_path: Path
) -> None:
    query = Query("text", "an <b>owl</b>")
    group = SampleGroup(query, (Draw(examples.neighbors(2), examples.samples(2)),))
    section = GallerySection(
        "One",
        "note",
        (examples.picture(0),),
        (QueryNeighbors(query, examples.neighbors(3)),),
        (group,),
    )
    write_gallery([section, GallerySection("Two")], tmp_path / "gallery.html", "Birds & <co>")
    page = examples.Page((tmp_path / "gallery.html").read_text(encoding="utf-8"))
    assert (page.open, page.mismatched) == ([], [])
    assert len(page.all("img")) == 1 + 3 + 2 + 2
    assert "Birds & <co>" in page.words
    assert "“an <b>owl</b>”" in page.words
    assert "Two Nothing to show." in page.words


def test_gallery_without_sections_says_so(examples: SimpleNamespace, tmp_path: Path) -> None:
    write_gallery([], tmp_path / "gallery.html", "Empty")
    assert (
        "Nothing to show."
        in examples.Page((tmp_path / "gallery.html").read_text(encoding="utf-8")).words
    )
