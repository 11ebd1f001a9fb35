import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdm.encoders import load_encoder, normalize
from rdm.encoders.image_tower import FEATURE_DIM, ImageTower, load_image_tower, wheel_folder
from rdm.encoders.lite import LiteEncoder, bundled_directory
from rdm.errors import MissingDependencyError, ModelError

pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture(scope="module")
def encoder() -> LiteEncoder:
    loaded = load_encoder("assets://encoder-lite")
    assert isinstance(loaded, LiteEncoder)
    return loaded


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Smooth random pictures, uint8 [11, 3, 224, 224]: one chunk of the encoder and a part of
    another."""
    small = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(pixels).resize((224, 224))) for pixels in small]
    return np.stack(large).transpose(0, 3, 1, 2).copy()


def test_embeddings_have_the_length_of_the_fingerprint(
    encoder: LiteEncoder, pictures: np.ndarray
) -> None:
    embeddings = encoder.encode_images(pictures[:2])
    assert embeddings.shape == (2, encoder.fingerprint.embedding_dim)
    assert embeddings.dtype == np.float32


def test_embedding_of_a_picture_does_not_depend_on_its_batch(
    encoder: LiteEncoder, pictures: np.ndarray
) -> None:
    together = encoder.encode_images(pictures)
    alone = np.concatenate([encoder.encode_images(picture[None]) for picture in pictures[[3, 9]]])
    assert np.array_equal(together[[3, 9]], alone)


def test_numpy_and_torch_batches_embed_alike(encoder: LiteEncoder, pictures: np.ndarray) -> None:
    assert np.array_equal(
        encoder.encode_images(pictures[:1]), encoder.encode_images(torch.from_numpy(pictures[:1]))
    )


def test_empty_batches_have_no_rows(encoder: LiteEncoder) -> None:
    assert encoder.encode_texts([]).shape == (0, encoder.embedding_dim)
    assert encoder.encode_images(np.zeros((0, 3, 224, 224), np.uint8)).shape == (
        0,
        encoder.embedding_dim,
    )


def test_text_does_not_depend_on_the_others_in_its_batch(encoder: LiteEncoder) -> None:
    text = "a duck swimming in the water"
    np.testing.assert_allclose(
        encoder.encode_texts([text, "a much longer text " * 20])[0],
        encoder.encode_texts([text])[0],
        atol=1e-5,
    )


def test_related_texts_are_closer_than_unrelated_ones(encoder: LiteEncoder) -> None:
    texts = ["a duck on a lake", "a mallard in the water", "a city street"]
    duck, mallard, city = normalize(encoder.encode_texts(texts))
    assert duck @ mallard > duck @ city + 0.2


def test_blue_picture_is_closer_to_the_sky_than_to_a_street(encoder: LiteEncoder) -> None:
    image = normalize(
        encoder.encode_images(encoder.preprocess(Image.new("RGB", (120, 90), (90, 150, 230)))[None])
    )
    sky, street = normalize(
        encoder.encode_texts(["a clear blue sky", "people walking down a busy street at night"])
    )
    assert (image @ sky).item() > (image @ street).item() + 0.1


def test_preprocessing_gives_bytes_of_the_input_size(encoder: LiteEncoder) -> None:
    pixels = encoder.preprocess(Image.new("RGBA", (30, 500)))
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == np.uint8


@pytest.mark.slow
def test_pictures_are_encoded_without_the_libraries_of_the_text_tower() -> None:
    code = (
        "import sys, numpy as np; from rdm.encoders import load_encoder; "
        "load_encoder('assets://encoder-lite').encode_images(np.zeros((1, 3, 224, 224), "
        "np.uint8)); "
        "print([name for name in ('transformers', 'torchvision', 'torch._dynamo') if name in "
        "sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_folded_tower_agrees_with_the_network_of_the_wheel(pictures: np.ndarray) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    inputs = (torch.from_numpy(pictures[:2]).float() - 127) / 128
    with torch.inference_mode():
        expected = network.extract_features(inputs).mean((2, 3))
        features = ImageTower(network)(torch.from_numpy(pictures[:2]))
    assert features.shape == (2, FEATURE_DIM)
    torch.testing.assert_close(features[:, :1280], expected, rtol=1e-3, atol=1e-4)


def test_same_heads_in_another_folder_are_the_same_encoder(
    encoder: LiteEncoder, tmp_path: Path
) -> None:
    shutil.copytree(bundled_directory(), tmp_path / "copy")
    assert (
        load_encoder(f"lite:{tmp_path / 'copy'}").fingerprint.digest()
        == encoder.fingerprint.digest()
    )


def test_missing_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="heads cannot be read") as error:
        LiteEncoder(tmp_path, name="lite:nowhere")
    assert "clip-lite" in error.value.fix


def test_truncated_heads_are_refused(tmp_path: Path) -> None:
    shutil.copytree(bundled_directory(), tmp_path / "copy")
    weights = tmp_path / "copy" / "heads.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="heads cannot be read"):
        LiteEncoder(tmp_path / "copy", name="lite:truncated")


def test_heads_of_another_shape_are_refused(tmp_path: Path) -> None:
    shutil.copytree(bundled_directory(), tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(
        json.dumps({**config, "hidden_dim": config["hidden_dim"] + 1})
    )
    with pytest.raises(ModelError, match="size mismatch"):
        LiteEncoder(tmp_path / "copy", name="lite:mismatch")


def test_missing_wheel_says_what_to_install() -> None:
    with pytest.raises(MissingDependencyError) as error:
        wheel_folder("a_wheel_that_nobody_has")
    assert error.value.fix == "pip install 'retrieval-diffusion[samples]'"


def test_tower_is_frozen() -> None:
    assert not any(parameter.requires_grad for parameter in load_image_tower().parameters())
