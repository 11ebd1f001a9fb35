"""`rdm import-checkpoint`: an official checkpoint becomes a model folder that samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official_layout import first_stage, unet

from rdm.cli.main import run
from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.build import BuildConfig, DatabaseBuilder
from rdm.database.jobs import run_build
from rdm.sampling import RetrievalDiffusionModel, SampleSettings, sample, text_queries
from rdm.sources import CropConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole RDM's checkpoint with small networks: its U-Net reads embeddings of 16 numbers."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for prefix, shapes in (
        ("model.diffusion_model.", unet((32, 64), (False, True), 16, blocks=1)),
        ("first_stage_model.", first_stage((32, 64), 3, codebook=8)),
    ):
        state |= {prefix + name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("official") / "model.ckpt"
    torch.save({"state_dict": state, "epoch": 1}, path)
    return path


def test_an_rdm_becomes_a_model_folder_that_samples(
    checkpoint: Path, tmp_path: Path, photos: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build = BuildConfig(
        source=f"folder://{photos}", encoder=tiny_encoder, crop=CropConfig(frame_size=40, patch_size=32)
    )
    run_build(DatabaseBuilder(str(tmp_path / "db"), build), ComputeConfig(dask="inline"))
    vq, model = str(tmp_path / "vq"), str(tmp_path / "model")
    assert run(["import-checkpoint", str(checkpoint), "--kind", "vq-first-stage", "--out", vq]) == 0
    rest = ["--autoencoder", vq, "--database", str(tmp_path / "db"), "--latent-size", "8", "--json"]
    capsys.readouterr()
    assert run(["import-checkpoint", str(checkpoint), "--kind", "rdm-unet", "--out", model, *rest]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "plain"
    database = RetrievalDatabase.open(str(tmp_path / "db"))
    opened = RetrievalDiffusionModel.open(Path(model))
    queries = text_queries(database, ["a"], 2)
    assert sample(opened, database, queries, [0], SampleSettings(num_steps=2))[0].pixels.shape == (16, 16, 3)
    assert run(["import-checkpoint", str(checkpoint), "--kind", "rdm-unet", "--out", model]) == 2  # not empty


def test_a_dry_run_reads_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["import-checkpoint", str(checkpoint), "--kind", "rdm-unet", "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()


@pytest.mark.parametrize("kind", ["rdm-unet", "ldm-unet"])
def test_a_model_folder_needs_a_first_stage_and_a_database(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    command = ["import-checkpoint", str(checkpoint), "--kind", kind, "--out", str(tmp_path / "out")]
    assert run([*command, "--autoencoder", "assets://autoencoder-kl-f4"]) == 2
