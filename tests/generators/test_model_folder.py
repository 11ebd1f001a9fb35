from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

import pytest
import torch
from small_denoiser import SMALL_DENOISER, SMALL_PIXELS

from rdm.generators.conditions import Conditions, Known
from rdm.generators.generator import GeneratorConfig
from rdm.generators.model_first_stage import FIRST_STAGE, open_first_stage
from rdm.generators.model_folder import (
    ModelInfo,
    open_model,
    read_info,
    write_info,
    write_model,
)
from rdm.generators.provenance import SeenDatabase
from rdm.generators.sample_settings import SampleSettings
from rdm.generators.spaces import PixelsConfig
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.networks import build_network

ASSET = "assets://autoencoder-kl-f4"


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A first stage in a folder of its own."""
    embedded = Path(str(importlib.resources.files("rdm"))) / "assets" / "autoencoder-kl-f4"
    return Path(shutil.copytree(embedded, tmp_path / "stage"))


def info_of(autoencoder: str) -> ModelInfo:
    return ModelInfo(
        generator=GeneratorConfig(),
        autoencoder=autoencoder,
        latents_digest=load_autoencoder(autoencoder).latents_digest,
        encoder="lite:/home/me/heads",
        database=SeenDatabase(version=3, source="folder:///home/me/birds"),
    )


def test_a_model_opens_where_it_is_copied_to_without_the_folders_of_its_machine(
    stage: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    info = info_of(str(stage))
    write_info(tmp_path / "model", info)
    shutil.rmtree(stage)
    moved = tmp_path / "elsewhere" / "copied"
    shutil.copytree(tmp_path / "model", moved)
    shutil.rmtree(tmp_path / "model")
    assert open_first_stage(moved, read_info(moved)).latents_digest == info.latents_digest


def test_no_absolute_path_is_written(stage: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_info(tmp_path / "model", info_of(str(stage)))
    texts = [path.read_text() for path in (tmp_path / "model").rglob("*.json")]
    assert not [text for text in texts if "/home/me" in text or str(tmp_path) in text]
    assert read_info(tmp_path / "model").database == SeenDatabase(
        version=3, source="folder://birds"
    )


def test_an_asset_is_not_copied(tmp_path: Path) -> None:
    write_info(tmp_path, info_of(ASSET))
    assert not (tmp_path / FIRST_STAGE).exists()
    assert open_first_stage(tmp_path, read_info(tmp_path)).name == ASSET


def test_a_model_is_opened_as_it_was_written(tmp_path: Path) -> None:
    config = GeneratorConfig(network=SMALL_DENOISER)
    info = ModelInfo(
        generator=config, autoencoder=ASSET, latents_digest=load_autoencoder(ASSET).latents_digest
    )
    network = build_network(SMALL_DENOISER)
    write_model(tmp_path, info, network)
    model = open_model(tmp_path)
    assert model.info == info
    ours = model.generator.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in network.state_dict().items())


def test_a_model_of_pixels_has_no_first_stage(tmp_path: Path) -> None:
    config = GeneratorConfig(network=SMALL_PIXELS, space=PixelsConfig(), conditions=Conditions())
    write_model(tmp_path, ModelInfo(generator=config, resolution=8), build_network(SMALL_PIXELS))
    model = open_model(tmp_path)
    drawn = model.draw(
        model.generator.context([Known(), Known()]), [1, 2], SampleSettings(num_steps=2)
    )
    assert (model.first_stage, model.sources, tuple(drawn.shape)) == (None, (), (2, 3, 8, 8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "network"]
