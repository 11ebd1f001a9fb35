"""A database of eight photographs, and a model of random weights that draws from it in milliseconds."""

from __future__ import annotations

import pytest
import torch
from small_denoiser import SMALL_DENOISER

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.build import BuildConfig, DatabaseBuilder
from rdm.database.jobs import run_build
from rdm.models.first_stage import load_autoencoder
from rdm.sampling import RetrievalDiffusionModel
from rdm.sources import CropConfig
from rdm.training.objectives.retrieval_diffusion import RetrievalDiffusionConfig, RetrievalDiffusionObjective


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory, encoded, tiny_encoder: str) -> RetrievalDatabase:
    root = tmp_path_factory.mktemp("sampling")
    (root / "photos").mkdir()
    for number in range(8):
        (root / "photos" / f"{number}.jpg").write_bytes(encoded(number))
    config = BuildConfig(
        source=f"folder://{root}/photos", encoder=tiny_encoder, crop=CropConfig(frame_size=40, patch_size=32)
    )
    run_build(DatabaseBuilder(str(root / "db"), config), ComputeConfig(dask="inline"))
    return RetrievalDatabase.open(str(root / "db"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, database: RetrievalDatabase) -> RetrievalDiffusionModel:
    directory = tmp_path_factory.mktemp("model")
    denoiser = SMALL_DENOISER.model_copy(update={"cross_attention_dim": 16})
    config = RetrievalDiffusionConfig(denoiser=denoiser)
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
