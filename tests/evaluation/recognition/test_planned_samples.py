from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from rdm.database import RetrievalDatabase
from rdm.errors import SourceError
from rdm.evaluation.recognition.labelled import PictureSet
from rdm.evaluation.recognition.planned_samples import (
    PlannedDraw,
    class_plan,
    embed,
    nearest_plan,
    open_encoder,
    vectors_of,
)
from rdm.evaluation.recognition.stored_features import StoredArrays
from rdm.generators.neighbor_vectors import conditioning_vectors
from rdm.sampling import SampleSettings, open_model
from rdm.storage import Folder

ROWS = [np.arange(0, 6), np.arange(6, 12)]
QUICK = SampleSettings(k=2, num_steps=2, batch_size=2, guidance_scale=1)


def test_a_context_is_of_one_class_without_repetition() -> None:
    plan = class_plan(ROWS, per_class=3, k=4, seed=0)
    assert plan.labels is not None
    assert plan.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for context, label in zip(plan.contexts, plan.labels, strict=True):
        assert len(set(context.tolist())) == 4
        assert set(context.tolist()) <= set(ROWS[label].tolist())


def test_more_samples_of_a_class_leave_the_first_as_they_were() -> None:
    few, many = class_plan(ROWS, 2, 4, seed=0), class_plan(ROWS, 5, 4, seed=0)
    assert few.contexts.tolist() == [*many.contexts[:2].tolist(), *many.contexts[5:7].tolist()]
    assert few.contexts.tolist() != class_plan(ROWS, 2, 4, seed=1).contexts.tolist()


def test_class_with_fewer_pictures_than_neighbors_is_named() -> None:
    with pytest.raises(SourceError, match="class 1 has 2 pictures, but 4"):
        class_plan([np.arange(5), np.arange(5, 7)], 1, 4, seed=0)


def test_nearest_contexts_leave_the_query_out() -> None:
    angles = np.radians([0, 10, 25, 90, 95])
    embeddings = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    plan = nearest_plan(embeddings, num_queries=5, k=2)
    assert plan.contexts.tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2]]
    assert plan.labels is None


def test_queries_lie_evenly_over_the_pictures() -> None:
    embeddings = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    every, some = nearest_plan(embeddings, 9, 2), nearest_plan(embeddings, 3, 2)
    assert some.contexts.tolist() == every.contexts[[0, 4, 8]].tolist()


def test_too_few_pictures_for_neighbors_are_refused() -> None:
    with pytest.raises(SourceError, match="3 pictures, but a query needs 3 others"):
        nearest_plan(np.eye(3, dtype=np.float32), 3, 3)


@pytest.mark.parametrize("embedding", ["unit", "raw"])
def test_contexts_have_the_bits_that_a_database_of_whole_pictures_gives(
    whole_database: RetrievalDatabase, tmp_path: Path, embedding: Literal["unit", "raw"]
) -> None:
    ids = np.array([[0, 3, 1]])
    expected = conditioning_vectors(whole_database, ids, embedding)
    pictures = PictureSet(f"folder://{Path(whole_database.folder.url).parent}/photos")
    encoder = open_encoder(whole_database.encoder_name, "cpu")
    raw = embed(StoredArrays(Folder(tmp_path)), encoder, pictures, np.arange(4))
    assert vectors_of(raw[ids], embedding).tolist() == expected.astype(np.float32).tolist()


def test_samples_of_finished_batches_are_not_drawn_again(
    random_model: Path, tmp_path: Path
) -> None:
    model = open_model(random_model)
    plan = class_plan([np.arange(3), np.arange(3, 6)], 2, 2, seed=0)
    embeddings = np.random.default_rng(0).normal(size=(len(plan.rows), 16)).astype(np.float32)
    draw = PlannedDraw(model, plan, embeddings, QUICK, seed=5, pictures_digest="p")
    store = StoredArrays(Folder(tmp_path))
    first = draw.samples(store)
    assert first.shape == (4, 32, 32, 3)
    marked = np.full_like(first[:2], 7)
    store.folder.write_array("arrays/samples-000000.npy", marked)
    assert (draw.samples(store)[:2] == 7).all()
    other = PlannedDraw(model, plan, embeddings, QUICK, seed=6, pictures_digest="p")
    assert not (other.samples(store)[:2] == 7).all()


def test_sample_depends_on_its_seed_and_context_alone(random_model: Path, tmp_path: Path) -> None:
    model = open_model(random_model)
    few, many = (class_plan([np.arange(3), np.arange(3, 6)], count, 2, seed=0) for count in (1, 2))
    embeddings = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    one = PlannedDraw(model, few, embeddings[few.rows], QUICK, 0, "p").samples(
        StoredArrays(Folder(tmp_path / "a"))
    )
    two = PlannedDraw(model, many, embeddings[many.rows], QUICK, 0, "p").samples(
        StoredArrays(Folder(tmp_path / "b"))
    )
    assert np.abs(one[0].astype(int) - two[0]).max() <= 1
