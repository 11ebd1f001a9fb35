from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rdm.database import RetrievalDatabase
from rdm.sampling import Model, Sample, SampleSettings, sample, text_queries
from rdm.sampling.output import read_samples, write_samples
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.picture_file import read_picture

SETTINGS = SampleSettings(k=2, num_steps=1, guidance_scale=1.0, batch_size=2)


def draw(model: Model, database: RetrievalDatabase, count: int) -> Iterator[Sample]:
    queries = text_queries(database, ["a"], 2) * count
    return sample(model, database, queries, list(range(count)), SETTINGS)


def test_fewer_pictures_leave_none_of_an_earlier_call(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    assert write_samples(tmp_path, draw(model, database, 5), model, database, SETTINGS) == 5
    assert write_samples(tmp_path, draw(model, database, 1), model, database, SETTINGS) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "samples.json"]
    assert [row["file"] for row in json.loads((tmp_path / "samples.json").read_text())] == [
        "00000.png"
    ]


def test_files_of_other_names_stay(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    (tmp_path / "owl.png").write_bytes(b"mine")
    write_samples(tmp_path, draw(model, database, 1), model, database, SETTINGS)
    assert (tmp_path / "owl.png").read_bytes() == b"mine"


def test_every_picture_carries_what_the_index_says(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    write_samples(tmp_path, draw(model, database, 3), model, database, SETTINGS)
    for row in json.loads((tmp_path / "samples.json").read_text()):
        pixels, found, _ = read_picture(tmp_path / row["file"])
        assert found.to_json() == row
        assert found.pixels_sha256 == pixels_digest(pixels)


def test_no_pictures_are_an_empty_list(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    assert write_samples(tmp_path, iter(()), model, database, SETTINGS) == 0
    assert json.loads((tmp_path / "samples.json").read_text()) == []
    assert read_samples(tmp_path) == []
