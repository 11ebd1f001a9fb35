from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_denoiser import SMALL_DENOISER

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.build import BuildConfig, DatabaseBuilder
from rdm.database.jobs import run_build
from rdm.errors import EncoderMismatchError, ModelError, UsageError
from rdm.sampling import RetrievalDiffusionModel, SampleSettings, image_queries, sample, text_queries
from rdm.sampling.output import read_samples, write_samples
from rdm.sources import CropConfig
from rdm.training.objectives.retrieval_diffusion import (
    RetrievalDiffusionConfig,
    RetrievalDiffusionObjective,
)

SETTINGS = SampleSettings(k=3, num_steps=4, guidance_scale=2.0)


@pytest.fixture(scope="module")
def database(tmp_path_factory, encoded, tiny_encoder) -> RetrievalDatabase:
    root = tmp_path_factory.mktemp("sampling")
    (root / "photos").mkdir()
    for number in range(8):
        (root / "photos" / f"{number}.jpg").write_bytes(encoded(number))
    config = BuildConfig(
        source=f"folder://{root}/photos", encoder=tiny_encoder, crop=CropConfig(frame_size=40, patch_size=32)
    )
    run_build(DatabaseBuilder(str(root / "db"), config), ComputeConfig(dask="inline"))
    return RetrievalDatabase.open(str(root / "db"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, database) -> RetrievalDiffusionModel:
    directory = tmp_path_factory.mktemp("model")
    denoiser = SMALL_DENOISER.model_copy(update={"cross_attention_dim": 16})
    config = RetrievalDiffusionConfig(denoiser=denoiser)
    from rdm.models.first_stage import load_autoencoder

    name = "assets://autoencoder-kl-f4"
    torch.manual_seed(0)
    objective = RetrievalDiffusionObjective(
        config,
        {
            "autoencoder": name,
            "autoencoder_digest": load_autoencoder(name).digest,
            "resolution": 32,
            "encoder": database.encoder_name,
            "encoder_digest": database.encoder_digest,
            "queries_digest": "",
        },
        (0.0, 1.0),
    )
    objective.export(directory, dict(objective.named_parameters()))
    return RetrievalDiffusionModel.open(directory)


def test_a_picture_depends_on_its_own_seed_and_query_only(model, database):
    queries = text_queries(database, ["a", "b", "c"], 3)
    together = sample(model, database, queries, [5, 6, 7], SETTINGS)
    alone = sample(model, database, queries[1:2], [6], SETTINGS)
    # The convolutions' blocking may depend on the batch; the pictures may differ in the last bit only.
    assert np.abs(together[1].pixels.astype(int) - alone[0].pixels.astype(int)).max() <= 2


def test_the_same_call_gives_the_same_pictures(model, database):
    queries = text_queries(database, ["a"], 3)
    first, second = (sample(model, database, queries, [1], SETTINGS)[0].pixels for _ in range(2))
    assert np.array_equal(first, second)


def test_seeds_differ(model, database):
    query = text_queries(database, ["a"], 3)[0]
    first, second = sample(model, database, [query, query], [1, 2], SETTINGS)
    assert not np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_number_of_neighbors_need_not_be_the_trainings(model, database, k):
    settings = SampleSettings(k=k, num_steps=2)
    drawn = sample(model, database, text_queries(database, ["a"], k), [0], settings)
    assert drawn[0].pixels.shape == (32, 32, 3)


def test_a_query_finds_the_patch_that_it_is(database):
    patch = database.pixels(np.array([4]))[0]
    found = image_queries(database, [patch], ["patch"], 1)[0]
    assert found.neighbor_ids.tolist() == [4]
    assert found.similarities[0] == pytest.approx(1, abs=2e-3)


def test_a_written_sample_says_where_it_came_from(model, database, tmp_path):
    drawn = sample(model, database, text_queries(database, ["a"], 3), [9], SETTINGS)
    write_samples(tmp_path, drawn, model, database, SETTINGS)
    row = json.loads((tmp_path / "samples.json").read_text())[0]
    assert (row["label"], row["seed"], row["database"]["version"]) == ("a", 9, 1)
    assert [neighbor["patch_id"] for neighbor in row["neighbors"]] == drawn[0].query.neighbor_ids.tolist()
    assert np.array_equal(read_samples(tmp_path)[0].pixels, drawn[0].pixels)


def test_more_steps_than_the_model_has_timesteps_are_refused(model, database):
    queries = text_queries(database, ["a"], 3)
    with pytest.raises(UsageError, match="1001 steps, but the model has 1000 timesteps"):
        sample(model, database, queries, [0], SampleSettings(k=3, num_steps=1001))


def test_a_database_of_another_encoder_is_refused(model, database, make_encoder, tmp_path, photos):
    config = BuildConfig(
        source=f"folder://{photos}", encoder=make_encoder(1), crop=CropConfig(frame_size=40, patch_size=32)
    )
    run_build(DatabaseBuilder(str(tmp_path / "db"), config), ComputeConfig(dask="inline"))
    other = RetrievalDatabase.open(str(tmp_path / "db"))
    with pytest.raises(EncoderMismatchError, match="trained with embeddings of"):
        sample(model, other, text_queries(other, ["a"], 3), [0], SETTINGS)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no model here"):
        RetrievalDiffusionModel.open(tmp_path)


def test_a_damaged_description_is_refused(model, tmp_path):
    Path(tmp_path / "model.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        RetrievalDiffusionModel.open(tmp_path)
