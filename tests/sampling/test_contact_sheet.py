from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_recipe import neighbor, recipe

from rdm.database import RetrievalDatabase
from rdm.sampling import Model, SampleSettings
from rdm.sampling.contact_sheet import contact_sheet
from rdm.sampling.draw_request import draw_request
from rdm.sampling.output import read_samples
from rdm.sampling.recipe.xmp import TRAINED_ALGORITHMIC_MEDIA, sheet_packet
from rdm.sampling.request.sample_request import Request


def squares(count: int, side: int) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), (number, 0, 0)) for number in range(count)]


def test_pictures_stand_in_their_order_row_after_row() -> None:
    sheet = np.asarray(contact_sheet(squares(5, 4)))
    assert sheet.shape == (2 * 6 - 2, 3 * 6 - 2, 3)
    corners = [sheet[6 * row, 6 * column, 0] for row in range(2) for column in range(3)]
    assert corners == [0, 1, 2, 3, 4, 255]
    assert (sheet[4:6] == 255).all()


@pytest.mark.parametrize(("count", "side", "size"), [(1, 512, (256, 256)), (2, 256, (514, 256))])
def test_large_pictures_are_made_smaller(count: int, side: int, size: tuple[int, int]) -> None:
    assert contact_sheet(squares(count, side)).size == size


def test_a_folder_has_a_sheet_of_its_pictures_and_a_new_one_when_one_is_drawn_again(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    request = Request(texts=("a",), seeds="0-3", settings=SampleSettings(k=2, num_steps=1))
    draw_request(request, model, {"birds": database}, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "contact.png"))
    pictures = [item.pixels for item in read_samples(tmp_path)]
    side = len(pictures[0])
    assert np.array_equal(sheet[:side, :side], pictures[0])
    assert np.array_equal(sheet[side + 2 :, side + 2 :], pictures[3])
    (tmp_path / "contact.png").write_bytes(b"of other pictures")
    (tmp_path / "00000.png").unlink()
    draw_request(request, model, {"birds": database}, tmp_path)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "contact.png")), sheet)


def test_a_sheet_is_marked_and_credits_the_photographs_of_all() -> None:
    records = [
        recipe(0, neighbors=[neighbor(1, author="Ann Bird")]),
        recipe(1, neighbors=[neighbor(2, author="Bob Tit")]),
    ]
    packet = sheet_packet(records)
    assert TRAINED_ALGORITHMIC_MEDIA in packet
    assert "Ann Bird; Bob Tit" in packet
