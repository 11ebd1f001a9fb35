from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_recipe import neighbor, recipe

from rdm.errors import UsageError
from rdm.sampling.find_pictures import pictures_of
from rdm.sampling.recipe.picture_file import png_bytes
from rdm.sampling.recipe.record import SampleRecord

PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of photographs i0 and i1, of i1 alone, of none, and one of another program."""
    (tmp_path / "more").mkdir()
    write(tmp_path / "both.png", recipe(2))
    write(tmp_path / "more" / "one.png", recipe(0, neighbors=[neighbor(1)]))
    write(tmp_path / "none.png", recipe(0))
    Image.fromarray(PIXELS).save(tmp_path / "strange.png")
    return tmp_path


def write(path: Path, record: SampleRecord) -> None:
    path.write_bytes(png_bytes(PIXELS, record))


def names(photograph: str, folder: Path) -> list[str]:
    return [Path(one.path).name for one in pictures_of(photograph, folder).pictures]


@pytest.mark.parametrize(
    ("photograph", "expected"),
    [
        ("i1", ["both.png", "one.png"]),
        ("i0", ["both.png"]),
        (f"{1:064x}", ["both.png", "one.png"]),
        ("0" * 12, ["both.png", "one.png"]),
        ("1", ["both.png", "one.png"]),
        ("birds:0", ["both.png"]),
        ("paintings:0", []),
        ("i", []),
        ("i10", []),
    ],
)
def test_pictures_are_found_by_id_digest_or_patch(
    folder: Path, photograph: str, expected: list[str]
) -> None:
    assert names(photograph, folder) == expected


def test_what_carries_nothing_is_said_to_be_unknown(folder: Path) -> None:
    found = pictures_of("i0", folder)
    assert found.examined == 3
    assert [Path(path).name for path in found.without_recipe] == ["strange.png"]
    assert found.pictures[0].patches == ("birds:0",)


def test_a_picture_whose_texts_were_taken_out_is_found_by_the_list_beside_it(
    folder: Path,
) -> None:
    row = recipe(1, file="strange.png").to_json()
    (folder / "samples.json").write_text(f"[\n{json.dumps(row)}\n]\n")
    assert names("i0", folder) == ["both.png", "strange.png"]


def test_a_picture_that_has_no_room_for_all_its_neighbors_may_be_one(folder: Path) -> None:
    many = recipe(0, neighbors=[neighbor(n, author="x" * 1000) for n in range(500)])
    write(folder / "many.png", many)
    (found,) = pictures_of("i499", folder).pictures
    assert (Path(found.path).name, found.certain) == ("many.png", False)


def test_pictures_that_were_made_from_such_a_picture_are_found_too(folder: Path) -> None:
    for number, parent in ((1, "f" * 64), (2, "1" * 64), (3, "9" * 64)):
        child = recipe(0, pixels_sha256=str(number) * 64, parents=(parent,))
        write(folder / f"made{number}.png", child)
    write(folder / "both.png", recipe(2, pixels_sha256="f" * 64))
    write(folder / "none.png", recipe(0, pixels_sha256="8" * 64))
    assert names("i0", folder) == ["both.png", "made1.png", "made2.png"]


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        pictures_of("i0", tmp_path / "none")
