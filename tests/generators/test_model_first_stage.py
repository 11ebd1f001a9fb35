from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

import pytest

from rdm.errors import ModelError
from rdm.generators.generator import GeneratorConfig
from rdm.generators.model_first_stage import FIRST_STAGE, open_first_stage
from rdm.generators.model_folder import ModelInfo, read_info, write_info
from rdm.models.first_stage.first_stage import load_autoencoder


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
    )


def test_a_model_without_its_first_stage_is_refused_though_the_one_that_it_was_copied_from_stands(
    stage: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    write_info(tmp_path / "model", info_of(str(stage)))
    shutil.rmtree(tmp_path / "model" / FIRST_STAGE)
    for name in (FIRST_STAGE, str(stage)):
        with pytest.raises(ModelError, match="lacks its first stage") as error:
            open_first_stage(
                tmp_path / "model",
                read_info(tmp_path / "model").model_copy(update={"autoencoder": name}),
            )
        assert error.value.where == str(tmp_path / "model" / FIRST_STAGE)


def test_another_first_stage_in_its_place_is_refused(stage: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trained with another first stage"):
        open_first_stage(
            tmp_path,
            info_of(str(stage)).model_copy(update={"autoencoder": "assets://autoencoder-vq-f4"}),
        )


def test_an_export_whose_first_stage_is_gone_is_refused(stage: Path, tmp_path: Path) -> None:
    info = info_of(str(stage))
    (stage / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="is gone, so the model would not open"):
        write_info(tmp_path, info)
