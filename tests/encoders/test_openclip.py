import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rdm.encoders import Precision, load_encoder, normalize
from rdm.encoders.openclip import OpenClipEncoder
from rdm.errors import ModelError, UsageError
from rdm.sources import decode_image, open_source

SMALL = "rdm-test-vit"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, registered with open_clip, saved as safetensors, .pt and
    OpenAI look-alike."""
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    (folder / f"{SMALL}.json").write_text(json.dumps(config))
    (folder / f"{SMALL}-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = open_clip.create_model(SMALL).state_dict()
    save_file(state, folder / "small.safetensors")
    torch.save({"state_dict": state}, folder / "small.pt")
    torch.save({**state, "input_resolution": torch.tensor(32)}, folder / "original.pt")
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoints: Path) -> OpenClipEncoder:
    loaded = load_encoder(f"open_clip:{SMALL}/{checkpoints / 'small.safetensors'}")
    assert isinstance(loaded, OpenClipEncoder)
    return loaded


def test_local_file_embeds_pictures_and_texts(encoder: OpenClipEncoder) -> None:
    pixels = np.stack([encoder.preprocess(Image.new("RGB", (50, 40), "red"))])
    assert encoder.encode_images(pixels).shape == (1, 32)
    assert encoder.encode_texts(["a red picture", "a blue one"]).shape == (2, 32)


def test_embedding_is_that_of_open_clip_itself(encoder: OpenClipEncoder, checkpoints: Path) -> None:
    created: Any = open_clip.create_model_and_transforms(
        SMALL, str(checkpoints / "small.safetensors")
    )
    model, _, transform = created
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with torch.inference_mode():
        expected = model.eval().encode_image(transform(image)[None]).numpy()
    np.testing.assert_allclose(
        encoder.encode_images(encoder.preprocess(image)[None]), expected, atol=1e-5
    )


def test_pt_and_safetensors_are_the_same_encoder(
    encoder: OpenClipEncoder, checkpoints: Path
) -> None:
    other = OpenClipEncoder(f"open_clip:{SMALL}/{checkpoints / 'small.pt'}")
    assert other.fingerprint.digest() == encoder.fingerprint.digest()


def test_activation_is_part_of_the_fingerprint(encoder: OpenClipEncoder, checkpoints: Path) -> None:
    other = OpenClipEncoder(f"open_clip:{SMALL}-quickgelu/{checkpoints / 'small.pt'}")
    assert other.fingerprint.weights_digest == encoder.fingerprint.weights_digest
    assert other.fingerprint.digest() != encoder.fingerprint.digest()


def test_openai_weights_without_quickgelu_are_refused(checkpoints: Path) -> None:
    with pytest.raises(UsageError, match="QuickGELU") as error:
        OpenClipEncoder(f"open_clip:{SMALL}/{checkpoints / 'original.pt'}")
    assert f"{SMALL}-quickgelu/" in error.value.fix


def test_openai_tag_without_quickgelu_is_refused_before_any_download() -> None:
    with pytest.raises(UsageError, match="QuickGELU") as error:
        OpenClipEncoder("open_clip:ViT-B-32/openai")
    assert error.value.fix == "write open_clip:ViT-B-32-quickgelu/openai"


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weights": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="cannot be read safely"):
        OpenClipEncoder(f"open_clip:ViT-B-32/{tmp_path / 'bad.pt'}")
    assert not (tmp_path / "ran").exists()


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        OpenClipEncoder(f"open_clip:ViT-B-32/{tmp_path / 'absent.pt'}")


def test_name_without_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="names no weights"):
        OpenClipEncoder("open_clip:ViT-B-32")


def test_unknown_model_is_refused() -> None:
    with pytest.raises(UsageError, match="has no model"):
        OpenClipEncoder("open_clip:ViT-Z-99/openai")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_embedding_does_not_depend_on_what_shares_its_batch(
    encoder: OpenClipEncoder, precision: Precision
) -> None:
    some = load_encoder(encoder.fingerprint.name, precision=precision)
    pixels = np.random.default_rng(0).integers(0, 256, (19, 3, 32, 32), dtype=np.uint8)
    together = some.encode_images(pixels)
    np.testing.assert_array_equal(
        np.concatenate([some.encode_images(pixels[n : n + 1]) for n in range(19)]), together
    )
    np.testing.assert_array_equal(some.encode_images(pixels[5:16]), together[5:16])


def test_text_embedding_does_not_depend_on_what_shares_its_batch(encoder: OpenClipEncoder) -> None:
    texts = [f"picture {number}" for number in range(11)]
    together = encoder.encode_texts(texts)
    np.testing.assert_array_equal(
        np.concatenate([encoder.encode_texts([text]) for text in texts]), together
    )


def test_empty_batches_have_no_rows(encoder: OpenClipEncoder) -> None:
    assert encoder.encode_images(np.zeros((0, 3, 32, 32), np.uint8)).shape == (0, 32)
    assert encoder.encode_texts([]).shape == (0, 32)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (normalize(one) * normalize(other)).sum(axis=1)


def test_bfloat16_is_another_format_of_the_same_encoder(encoder: OpenClipEncoder) -> None:
    lowered = load_encoder(encoder.fingerprint.name, precision="bfloat16")
    assert lowered.fingerprint == encoder.fingerprint
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    assert not np.array_equal(lowered.encode_images(pixels), encoder.encode_images(pixels))
    assert cosines(lowered.encode_images(pixels), encoder.encode_images(pixels)).min() >= 0.999
    texts = ["a red picture", "a blue one"]
    assert cosines(lowered.encode_texts(texts), encoder.encode_texts(texts)).min() >= 0.999


@pytest.mark.slow
def test_vit_b_32_is_as_good_in_bfloat16(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_file(open_clip.create_model("ViT-B-32").state_dict(), tmp_path / "random.safetensors")
    name, source = (
        f"open_clip:ViT-B-32/{tmp_path / 'random.safetensors'}",
        open_source("samples://openimages-birds"),
    )
    exact, lowered = load_encoder(name), load_encoder(name, precision="bfloat16")
    locations = source.listing()["location"].to_pylist()[:64]
    pixels = np.stack(
        [exact.preprocess(decode_image(source.read(location))) for location in locations]
    )
    assert cosines(lowered.encode_images(pixels), exact.encode_images(pixels)).min() >= 0.999
