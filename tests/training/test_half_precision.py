"""A model's copy with 16-bit weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from random_model import write_model_of_random_weights
from safetensors.torch import load_file, save_file

from rdm.errors import ModelError, StorageError
from rdm.models.assets import named_folder
from rdm.models.first_stage.first_stage_folder import WEIGHTS_NAME
from rdm.sampling import open_model
from rdm.training.half_precision import HalfPrecision, export_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_of_random_weights(
        tmp_path_factory.mktemp("random") / "model", 16, ("tiny", "digest")
    )


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "network" / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_copy_holds_every_weight_rounded_to_16_bits(
    model: Path, tmp_path: Path, precision: HalfPrecision, dtype: torch.dtype
) -> None:
    size = export_model(str(model), tmp_path / "out", precision)
    before, after = weights_of(model), weights_of(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value.to(dtype)) for name, value in before.items())
    modes = {path.stat().st_mode for path in (tmp_path / "out" / "network").iterdir()}
    assert modes == {(model / "network" / "config.json").stat().st_mode}
    assert size < 0.6 * sum(path.stat().st_size for path in model.rglob("*") if path.is_file())


def test_copy_opens_as_a_model_of_32_bits_whose_weights_are_the_rounded_ones(
    model: Path, tmp_path: Path
) -> None:
    export_model(str(model), tmp_path / "out")
    opened = open_model(tmp_path / "out")
    rounded = weights_of(tmp_path / "out")
    for name, value in opened.generator.network.core.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, rounded[name].float())


def first_stage_copy(place: Path, prefix: str) -> Path:
    """A copy of the embedded first stage, with 1 added to the first weight whose name begins so."""
    shutil.copytree(named_folder("assets://autoencoder-kl-f4", WEIGHTS_NAME, "first stage"), place)
    weights = load_file(place / WEIGHTS_NAME)
    name = next(name for name in sorted(weights) if name.startswith(prefix))
    save_file({**weights, name: weights[name] + 1}, place / WEIGHTS_NAME)
    return place


def test_first_stage_with_another_decoder_goes_into_the_copy(model: Path, tmp_path: Path) -> None:
    other = first_stage_copy(tmp_path / "other", "decoder.")
    export_model(str(model), tmp_path / "out", autoencoder=str(other))
    shutil.rmtree(other)
    opened = open_model(tmp_path / "out")
    before = open_model(model).first_stage
    assert opened.first_stage is not None
    assert before is not None
    assert opened.first_stage.digest != before.digest
    again = tmp_path / "again"
    export_model(str(tmp_path / "out"), again, autoencoder="assets://autoencoder-kl-f4")
    assert (
        json.loads((again / "model.json").read_text())["autoencoder"]
        == "assets://autoencoder-kl-f4"
    )
    assert not (again / "first_stage").exists()


def test_first_stage_with_another_encoder_is_refused(model: Path, tmp_path: Path) -> None:
    other = first_stage_copy(tmp_path / "other", "encoder.")
    with pytest.raises(ModelError, match="the model draws latents of the first stage"):
        export_model(str(model), tmp_path / "out", autoencoder=str(other))


def test_weight_that_fp16_cannot_hold_is_an_error(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "great")
    path = tmp_path / "great" / "network" / WEIGHTS_NAME
    weights = load_file(path)
    name = min(weights)
    save_file({**weights, name: torch.full_like(weights[name], 1e6)}, path)
    with pytest.raises(ModelError, match=f"{name} does not fit into fp16") as raised:
        export_model(str(tmp_path / "great"), tmp_path / "out")
    assert raised.value.fix == "--precision bf16"


def test_folder_that_exists_is_left_alone(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the folder exists already"):
        export_model(str(model), tmp_path)


def test_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model here"):
        export_model(str(tmp_path), tmp_path / "out")
