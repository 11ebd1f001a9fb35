from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.errors import EncoderMismatchError, ModelError, UsageError
from rdm.progress import progress_to
from rdm.sampling import (
    DrawStep,
    Model,
    Sample,
    SampleSettings,
    image_queries,
    open_model,
    sample,
    text_queries,
)
from rdm.sampling.output import read_samples, write_samples
from rdm.sampling.recorder import Recorder
from rdm.sources import CropConfig

SETTINGS = SampleSettings(k=3, num_steps=4, guidance_scale=2.0)


def test_a_picture_depends_on_its_own_seed_and_query_only(
    model: Model, database: RetrievalDatabase
) -> None:
    queries = text_queries(database, ["a", "b", "c"], 3)
    together = list(sample(model, database, queries, [5, 6, 7], SETTINGS))
    alone = list(sample(model, database, queries[1:2], [6], SETTINGS))
    assert np.array_equal(together[1].pixels, alone[0].pixels)


def test_a_picture_has_the_same_bits_whatever_shares_its_batch(
    model: Model, database: RetrievalDatabase
) -> None:
    a, b, c, d = text_queries(database, ["a", "b", "c", "d"], 3)
    one = list(sample(model, database, [a, b, c], [5, 6, 7], SETTINGS))[1]
    other = list(sample(model, database, [d, b, a], [8, 6, 9], SETTINGS))[1]
    assert np.array_equal(one.pixels, other.pixels)


def test_the_same_call_gives_the_same_pictures(model: Model, database: RetrievalDatabase) -> None:
    queries = text_queries(database, ["a"], 3)
    first, second = (next(sample(model, database, queries, [1], SETTINGS)).pixels for _ in range(2))
    assert np.array_equal(first, second)


def test_seeds_differ(model: Model, database: RetrievalDatabase) -> None:
    query = text_queries(database, ["a"], 3)[0]
    first, second = sample(model, database, [query, query], [1, 2], SETTINGS)
    assert not np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_number_of_neighbors_need_not_be_the_trainings(
    model: Model, database: RetrievalDatabase, k: int
) -> None:
    settings = SampleSettings(k=k, num_steps=2)
    drawn = list(sample(model, database, text_queries(database, ["a"], k), [0], settings))
    assert drawn[0].pixels.shape == (32, 32, 3)


def test_a_query_finds_the_patch_that_it_is(database: RetrievalDatabase) -> None:
    patch = database.pixels(np.array([4]))[0]
    found = image_queries(database, [patch], ["patch"], 1)[0]
    assert found.neighbor_ids.tolist() == [4]
    assert found.similarities[0] == pytest.approx(1, abs=2e-3)


def test_a_written_sample_says_where_it_came_from(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    drawn = list(sample(model, database, text_queries(database, ["a"], 3), [9], SETTINGS))
    write_samples(tmp_path, drawn, model, database, SETTINGS)
    row = json.loads((tmp_path / "samples.json").read_text())[0]
    assert (row["query"]["label"], row["seed"], row["databases"][0]["version"]) == ("a", 9, 1)
    assert [neighbor["patch_id"] for neighbor in row["neighbors"]] == drawn[
        0
    ].query.neighbor_ids.tolist()
    assert np.array_equal(read_samples(tmp_path)[0].pixels, drawn[0].pixels)


def test_more_steps_than_the_model_has_timesteps_are_refused(
    model: Model, database: RetrievalDatabase
) -> None:
    queries = text_queries(database, ["a"], 3)
    with pytest.raises(UsageError, match="1001 steps, but the model has 1000 timesteps"):
        list(sample(model, database, queries, [0], SampleSettings(k=3, num_steps=1001)))


def test_a_picture_is_credited_to_the_neighbors_that_conditioned_it_and_to_no_others(
    model: Model, database: RetrievalDatabase
) -> None:
    query = text_queries(database, ["a"], 7)[0]
    settings = SampleSettings(k=2, num_steps=1)
    drawn = next(sample(model, database, [query], [0], settings))
    (record,) = Recorder(model, {"": database}, settings).records([drawn], ["a.png"])
    assert [credit.patch_id for credit in record.neighbors] == query.neighbor_ids[:2].tolist()
    assert [credit.similarity for credit in record.neighbors] == query.similarities[:2].tolist()
    assert record.settings is not None
    assert record.settings["k"] == 2


def test_seven_neighbors_looked_up_and_two_used_draw_as_two_looked_up(
    model: Model, database: RetrievalDatabase
) -> None:
    settings = SampleSettings(k=2, num_steps=1)
    many, few = (
        next(sample(model, database, text_queries(database, ["a"], k), [0], settings))
        for k in (7, 2)
    )
    assert np.array_equal(many.pixels, few.pixels)


def test_fewer_neighbors_than_k_are_refused(model: Model, database: RetrievalDatabase) -> None:
    with pytest.raises(
        UsageError, match="8 neighbors are to condition a picture, but 4 were looked up for 'a'"
    ):
        list(
            sample(
                model,
                database,
                text_queries(database, ["a"], 4),
                [0],
                SampleSettings(k=8, num_steps=1),
            )
        )


def test_settings_that_say_nothing_to_a_model_are_not_recorded(model: Model) -> None:
    diffusion = {
        "k",
        "guidance_scale",
        "guidance_interval",
        "batch_size",
        "num_steps",
        "eta",
        "sampler",
    }
    assert set(model.acting(SampleSettings())) == diffusion


def test_an_interval_of_guidance_that_is_none_is_not_recorded(model: Model) -> None:
    asked = SampleSettings(guidance_scale=1.0, guidance_interval=(-3.0, 3.0))
    assert model.acting(asked)["guidance_interval"] is None


@pytest.mark.slow
def test_only_the_batch_in_work_is_held(model: Model, database: RetrievalDatabase) -> None:
    query = text_queries(database, ["a"], 1)[0]
    settings = SampleSettings(k=1, num_steps=1, guidance_scale=1.0, batch_size=4)
    most = 0
    for _ in sample(model, database, [query] * 24, list(range(24)), settings):
        most = max(most, sum(type(item) is Sample for item in gc.get_objects()))
    assert most <= 8  # a batch, and the one that it takes the place of


def test_every_step_is_told_with_a_preview(model: Model, database: RetrievalDatabase) -> None:
    steps: list[DrawStep] = []
    drawn = list(
        sample(
            model,
            database,
            text_queries(database, ["a", "b"], 3),
            [5, 6],
            SETTINGS,
            on_step=steps.append,
        )
    )
    assert [(step.index, step.total, step.seeds) for step in steps] == [
        (n, 4, (5, 6)) for n in (1, 2, 3, 4)
    ]
    assert steps[0].preview().shape == (2, *drawn[0].pixels.shape)


def test_being_told_of_steps_changes_no_bit(model: Model, database: RetrievalDatabase) -> None:
    queries = text_queries(database, ["a"], 3)
    told = next(
        sample(model, database, queries, [5], SETTINGS, on_step=lambda step: step.preview())
    )
    assert np.array_equal(told.pixels, next(sample(model, database, queries, [5], SETTINGS)).pixels)


def test_an_exception_of_the_listener_ends_the_drawing_between_two_steps(
    model: Model, database: RetrievalDatabase
) -> None:
    class Cancelled(Exception):
        pass

    steps: list[int] = []

    def cancel(step: DrawStep) -> None:
        steps.append(step.index)
        if len(steps) == 6:  # the second step of the second picture
            raise Cancelled

    settings = SETTINGS.model_copy(update={"batch_size": 1})
    drawing = sample(
        model, database, text_queries(database, ["a", "b"], 3), [5, 6], settings, on_step=cancel
    )
    assert next(drawing).seed == 5
    with pytest.raises(Cancelled):
        next(drawing)
    assert steps == [1, 2, 3, 4, 1, 2]


def test_progress_tells_the_step_of_the_batch_in_work(
    model: Model, database: RetrievalDatabase
) -> None:
    class Notes:
        notes: ClassVar[list[tuple[int, str]]] = []

        def start(self, stage: str, total: int, unit: str, done: int) -> None: ...
        def finish(self) -> None: ...
        def update(self, done: int, note: str) -> None:
            self.notes.append((done, note))

    with progress_to(Notes()):
        list(sample(model, database, text_queries(database, ["a"], 3), [0], SETTINGS))
    assert Notes.notes == [(0, f"step {n}/4") for n in (1, 2, 3, 4)] + [(1, "")]


def test_a_database_of_another_encoder_is_refused(
    model: Model,
    database: RetrievalDatabase,
    make_encoder: Callable[[int], str],
    tmp_path: Path,
    photos: Path,
) -> None:
    config = BuildConfig(
        source=f"folder://{photos}",
        encoder=make_encoder(1),
        crop=CropConfig(frame_size=40, patch_size=32),
    )
    run_build(DatabaseBuilder(str(tmp_path / "db"), config), ComputeConfig(dask="inline"))
    other = RetrievalDatabase.open(str(tmp_path / "db"))
    with pytest.raises(EncoderMismatchError, match="trained with embeddings of"):
        sample(model, other, text_queries(other, ["a"], 3), [0], SETTINGS)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model here"):
        open_model(tmp_path)


def test_a_damaged_description_is_refused(model: Model, tmp_path: Path) -> None:
    Path(tmp_path / "model.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        open_model(tmp_path)
