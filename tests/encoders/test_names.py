from __future__ import annotations

from pathlib import Path

import pytest

from rdm.database.settings import BuildConfig
from rdm.encoders.names import absolute_encoder, weights_path


@pytest.mark.parametrize(
    ("given", "meant", "path"),
    [
        ("assets://encoder-lite", "assets://encoder-lite", None),
        ("open_clip:ViT-B-32-quickgelu/openai", "open_clip:ViT-B-32-quickgelu/openai", None),
        ("open_clip:ViT-B-32/own.pt", "open_clip:ViT-B-32/{here}/own.pt", "{here}/own.pt"),
        (
            "open_clip:ViT-B-32/weights/own.safetensors",
            "open_clip:ViT-B-32/{here}/weights/own.safetensors",
            None,
        ),
        ("open_clip:ViT-B-32//data/own.pt", "open_clip:ViT-B-32//data/own.pt", "/data/own.pt"),
        ("lite:heads", "lite:{here}/heads", "{here}/heads"),
        ("no such encoder", "no such encoder", None),
    ],
)
def test_file_of_an_encoder_is_meant_from_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, meant: str, path: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_encoder(given) == meant.format(here=tmp_path)
    assert BuildConfig(source="samples://x", encoder=given).encoder == meant.format(here=tmp_path)
    if path is not None:
        assert weights_path(given) == path.format(here=tmp_path)
