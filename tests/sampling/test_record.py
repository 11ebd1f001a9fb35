from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.errors import SourceError
from rdm.sampling.record import (
    MAX_PNG_BYTES,
    PNG_KEY,
    Credit,
    DatabaseReference,
    SampleRecord,
    png_text,
    read_png_record,
)


def record(num_neighbors: int = 3, author: str = "Zoë 写", **changes: object) -> SampleRecord:
    credits = tuple(
        Credit(
            patch_id=number,
            similarity=1 / (number + 1),
            image_id=f"i{number}",
            url=f"https://example.org/{number}.jpg",
            author=author,
            license="https://creativecommons.org/licenses/by/2.0/",
            box=(0, 1, 2, 3),
        )
        for number in range(num_neighbors)
    )
    fields = {
        "file": "00000.png",
        "kind": "text",
        "label": "an owl",
        "seed": 7,
        "neighbors": credits,
        "settings": {"k": num_neighbors},
        "model": "/home/me/run/model",
        "model_digest": "0123456789abcdef",
        "device": "cpu",
        "databases": (DatabaseReference(name="/home/me/birds", root="/home/me/birds", version=3),),
    }
    return SampleRecord.model_validate({**fields, **changes})


def written(path: Path, some: SampleRecord) -> Path:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, pnginfo=png_text(some))
    return path


def test_a_picture_carries_its_credits_in_order(tmp_path: Path) -> None:
    found = read_png_record(written(tmp_path / "a.png", record()))
    assert found.neighbors == record().neighbors
    assert (found.label, found.seed, found.neighbors_left_out) == ("an owl", 7, 0)


def test_a_picture_carries_no_folder_of_the_machine_that_drew_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", record(kind="image", label="/home/me/owl.jpg"))
    found = read_png_record(path)
    assert (found.label, found.model, found.databases[0].root) == ("owl.jpg", "model", "birds")
    assert b"/home/me" not in path.read_bytes()


@pytest.mark.parametrize("author", ["x" * 1000, "写" * 100_000], ids=["many", "huge"])
def test_the_text_of_a_picture_is_bounded_and_says_what_was_left_out(
    tmp_path: Path, author: str
) -> None:
    found = read_png_record(written(tmp_path / "a.png", record(500, author, label="w" * 10**6)))
    assert len(found.model_dump_json().encode()) <= MAX_PNG_BYTES
    assert len(found.neighbors) + found.neighbors_left_out == 500
    assert found.neighbors == record(len(found.neighbors), author).neighbors


def test_a_picture_of_another_program_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match="carries no record"):
        read_png_record(tmp_path / "a.png")


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt(PNG_KEY, '{"seed": 1}')
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(SourceError, match="record is damaged"):
        read_png_record(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"words", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_what_is_no_png_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read as a PNG"):
        read_png_record(tmp_path / "a.png")
