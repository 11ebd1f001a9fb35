from __future__ import annotations

import json
from pathlib import Path

import pytest

from rdm.cli.main import run

ASSET = "assets://autoencoder-kl-f4"


def test_a_first_stage_is_measured_on_held_out_photographs(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--source",
        f"folder://{photos}",
        "--held-out-fraction",
        "0.4",
        "--image-size",
        "32",
    ]
    assert (
        run(["evaluate-autoencoder", "--autoencoder", ASSET, *arguments, "--no-fid", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["autoencoder"] == ASSET
    assert 1 <= result["num_images"] < 12
    assert result["psnr_db"] > 10
    assert result["perceptual"] > 0
    assert "rfid" not in result


def test_all_of_a_folder_that_no_training_has_seen_is_measured(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", f"folder://{photos}", "--held-out-fraction", "1", "--image-size", "32"]
    assert (
        run(["evaluate-autoencoder", "--autoencoder", ASSET, *arguments, "--no-fid", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["num_images"] == len(list(photos.iterdir()))
    assert result["psnr_db"] > 10
    assert "linear_psnr_db" not in result


def test_weights_that_are_missing_are_told_with_what_to_download(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", f"folder://{photos}", "--no-fid", "--perceptual", "missing.pth"]
    assert run(["evaluate-autoencoder", "--autoencoder", ASSET, *arguments]) == 1
    assert "vgg16-397923af.pth" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    run(["evaluate-autoencoder", "--help"])
    assert "Example: rdm evaluate-autoencoder" in capsys.readouterr().out
