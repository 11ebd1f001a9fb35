import pytest

from rdm.encoders import fastest_precision, load_encoder
from rdm.errors import UsageError


def test_unknown_encoder_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as error:
        load_encoder("clip")
    assert "assets://encoder-lite" in error.value.fix
    assert "open_clip:" in error.value.fix


def test_encoder_is_loaded_once_per_process() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    assert load_encoder("assets://encoder-lite") is load_encoder("assets://encoder-lite")


def test_embedded_encoder_has_float32_only() -> None:
    assert fastest_precision("assets://encoder-lite") == "float32"
    with pytest.raises(UsageError, match="not as good in bfloat16"):
        load_encoder("assets://encoder-lite", precision="bfloat16")
