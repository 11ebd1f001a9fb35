"""`rdm import-checkpoint`: an official checkpoint becomes a model folder that samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from official_layout import first_stage, unet

from rdm.cli.main import run
from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.models.compvis.import_checkpoint import import_unet
from rdm.models.unet import DenoiserConfig
from rdm.sampling import SampleSettings, open_model, sample, text_queries
from rdm.sources import CropConfig
from rdm.training.imported_model import official_generator


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole RDM's checkpoint with small networks: its U-Net reads embeddings of 16 numbers."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for prefix, shapes in (
        ("model.diffusion_model.", unet((32, 64), (False, True), 16, blocks=1)),
        ("first_stage_model.", first_stage((32, 64), 3, codebook=8)),
    ):
        state |= {
            prefix + name: 0.02 * torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        }
    path = tmp_path_factory.mktemp("official") / "model.ckpt"
    torch.save({"state_dict": state, "epoch": 1}, path)
    return path


def test_an_rdm_becomes_a_model_folder_that_samples(
    checkpoint: Path,
    tmp_path: Path,
    photos: Path,
    tiny_encoder: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = BuildConfig(
        source=f"folder://{photos}",
        encoder=tiny_encoder,
        crop=CropConfig(frame_size=40, patch_size=32),
    )
    run_build(DatabaseBuilder(str(tmp_path / "db"), build), ComputeConfig(dask="inline"))
    vq, model = str(tmp_path / "vq"), str(tmp_path / "model")
    assert run(["import-checkpoint", str(checkpoint), "--kind", "vq-first-stage", "--out", vq]) == 0
    rest = ["--autoencoder", vq, "--database", str(tmp_path / "db"), "--latent-size", "8", "--json"]
    capsys.readouterr()
    assert (
        run(["import-checkpoint", str(checkpoint), "--kind", "rdm-unet", "--out", model, *rest])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["weights"] == "plain"
    database = RetrievalDatabase.open(str(tmp_path / "db"))
    opened = open_model(Path(model))
    queries = text_queries(database, ["a"], 2)
    drawn = next(sample(opened, database, queries, [0], SampleSettings(k=2, num_steps=2)))
    assert drawn.pixels.shape == (16, 16, 3)
    # not empty
    assert run(["import-checkpoint", str(checkpoint), "--kind", "rdm-unet", "--out", model]) == 2


@pytest.mark.parametrize(
    ("context", "embedding", "beta_end"), [(16, "raw", 0.0195), (768, "unit", 0.015)]
)
def test_the_model_for_768_pixels_has_a_schedule_and_a_conditioning_of_its_own(
    context: int, embedding: str, beta_end: float
) -> None:
    state = {
        name: torch.zeros(shape)
        for name, shape in unet((32, 64), (False, True), context, blocks=1).items()
    }
    network = import_unet(state, use_ema=False, sample_size=8, head_dim=32, num_heads=None).config
    assert isinstance(network, DenoiserConfig)
    generator = official_generator(network)
    assert generator.conditions.neighbors is not None
    assert generator.conditions.neighbors.embedding == embedding
    assert generator.head.kind == "gaussian"
    assert generator.head.schedule.beta_end == beta_end


def test_an_unconditional_u_net_is_saved_as_diffusers_own_and_is_no_rdm(tmp_path: Path) -> None:
    state = {
        name: torch.zeros(shape)
        for name, shape in unet((32, 64), (False, True), None, blocks=1).items()
    }
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    command = [
        "import-checkpoint",
        str(tmp_path / "model.ckpt"),
        "--out",
        str(tmp_path / "ldm"),
        "--latent-size",
        "8",
    ]
    assert run([*command, "--kind", "rdm-unet"]) == 1
    assert run([*command, "--kind", "ldm-unet"]) == 0
    opened = UNet2DModel.from_pretrained(str(tmp_path / "ldm" / "network"), local_files_only=True)
    assert opened(torch.zeros(1, 3, 8, 8), 0).sample.shape == (1, 3, 8, 8)


def test_the_folder_where_one_is_is_not_replaced(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        run(["import-checkpoint", str(checkpoint), "--kind", "vq-first-stage", "--out", "."]) == 2
    )


def test_a_dry_run_reads_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        run(
            [
                "import-checkpoint",
                str(checkpoint),
                "--kind",
                "rdm-unet",
                "--out",
                str(out),
                "--dry-run",
            ]
        )
        == 0
    )
    assert not out.exists()


@pytest.mark.parametrize("kind", ["rdm-unet", "ldm-unet"])
def test_a_model_folder_needs_a_first_stage_and_a_database(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    command = ["import-checkpoint", str(checkpoint), "--kind", kind, "--out", str(tmp_path / "out")]
    assert run([*command, "--autoencoder", "assets://autoencoder-kl-f4"]) == 2
