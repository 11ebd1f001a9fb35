"""Names of what ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdm.errors import ModelError
from rdm.models.assets import absolute_name, named_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_name_of_an_asset_leads_into_the_package() -> None:
    folder = named_folder("assets://autoencoder-kl-f4", WEIGHTS, "first stage")
    assert folder.parts[-3:] == ("rdm", "assets", "autoencoder-kl-f4")
    assert (folder / WEIGHTS).is_file()


def test_any_other_name_is_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_folder("~/model", WEIGHTS, "first stage") == tmp_path / "model"
    assert named_folder("model", WEIGHTS, "first stage") == Path("model")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../assets/autoencoder-kl-f4",
        "autoencoder-kl-f4/../autoencoder-vq-f4",
        "/etc",
        "AUTOENCODER-KL-F4",
    ],
)
def test_name_that_is_no_assets_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ModelError, match="there is no embedded first stage") as raised:
        named_folder(f"assets://{name}", WEIGHTS, "first stage")
    assert "assets://autoencoder-kl-f4, assets://autoencoder-vq-f4" in str(raised.value.fix)


def test_asset_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="there is no embedded first stage 'encoder-lite'"):
        named_folder("assets://encoder-lite", WEIGHTS, "first stage")


def test_absolute_name_leaves_assets_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_name("assets://autoencoder-kl-f4") == "assets://autoencoder-kl-f4"
    assert absolute_name("model") == str(tmp_path / "model")
