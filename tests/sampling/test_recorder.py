from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from rdm.database import RetrievalDatabase
from rdm.sampling import Model, SampleSettings, image_queries, sample, text_queries
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.record import SampleRecord
from rdm.sampling.recorder import Recorder

SETTINGS = SampleSettings(k=2, num_steps=1, batch_size=3)


@pytest.fixture(scope="module")
def records(model: Model, database: RetrievalDatabase) -> list[SampleRecord]:
    queries = text_queries(database, ["a"], 2) * 4
    drawn = list(sample(model, database, queries, [0, 1, 2, 3], SETTINGS))
    names = [f"{number}.png" for number in range(4)]
    return Recorder(model, {"": database}, SETTINGS).records(drawn, names)


def test_a_recipe_names_model_encoder_and_database_by_digest(
    records: list[SampleRecord], model: Model, database: RetrievalDatabase
) -> None:
    record = records[0]
    assert record.model.digest == model.digest
    assert record.encoder is not None
    assert record.encoder.digest == database.encoder_digest
    (reference,) = record.databases
    assert (reference.name, reference.version) == ("db", 1)
    assert len(reference.digest) == 16


def test_a_recipe_has_the_tokens_that_the_network_read_and_their_photographs(
    records: list[SampleRecord], database: RetrievalDatabase
) -> None:
    record = records[0]
    assert [(token.kind, token.patch_id, token.weight) for token in record.tokens] == [
        ("patch", credit.patch_id, 1.0) for credit in record.neighbors
    ]
    places = np.array([credit.patch_id for credit in record.neighbors])
    photographs = Path(database.version.source.removeprefix("folder://"))
    for credit, found in zip(record.neighbors, database.records(places), strict=True):
        data = (photographs / found.image_id).read_bytes()
        assert credit.sha256 == hashlib.sha256(data).hexdigest()
        assert credit.box == found.box


def test_a_recipe_says_where_in_which_batch_its_picture_was_drawn(
    records: list[SampleRecord],
) -> None:
    places = [(one.batch.shape, one.batch.row) for one in records if one.batch is not None]
    assert places == [(3, 0), (3, 1), (3, 2), (3, 0)]


def test_a_recipe_says_what_computed(records: list[SampleRecord]) -> None:
    software = records[0].software
    assert (software.torch, software.device) == (torch.__version__, "cpu")
    assert software.threads == torch.get_num_threads()


def test_a_recipe_has_size_and_digest_of_its_pixels(
    model: Model, database: RetrievalDatabase
) -> None:
    drawn = list(sample(model, database, text_queries(database, ["a"], 2), [5], SETTINGS))
    (record,) = Recorder(model, {"": database}, SETTINGS).records(drawn, ["a.png"])
    assert record.size == (32, 32)
    assert record.pixels_sha256 == pixels_digest(drawn[0].pixels)


def test_a_recipe_names_no_folder_of_the_machine(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    picture = database.pixels(np.array([1]))[0]
    queries = image_queries(database, [picture], [str(tmp_path / "owl.jpg")], 2)
    drawn = list(sample(model, database, queries, [5], SETTINGS))
    (record,) = Recorder(model, {"": database}, SETTINGS).records(drawn, ["a.png"])
    assert record.query is not None
    assert record.query.label == "owl.jpg"
    text = record.model_dump_json()
    assert str(model.directory.parent) not in text
    assert str(Path(database.folder.url).parent) not in text
    assert "/" not in record.model.name + record.databases[0].name
