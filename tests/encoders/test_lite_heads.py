from pathlib import Path

import pytest
import torch

from rdm.encoders.image_tower import FEATURE_DIM, NUM_CLASSES
from rdm.encoders.projection_heads import HeadsConfig, LiteHeads, load_heads, save_heads
from rdm.encoders.text_tower import HIDDEN_DIM

CONFIG = HeadsConfig(
    hidden_dim=16,
    embedding_dim=24,
    naming_dim=8,
    text_layers=(6,),
    naming_weight=0.5,
    naming_temperature=1.0,
)


@pytest.fixture
def heads() -> LiteHeads:
    torch.manual_seed(0)
    built = LiteHeads(CONFIG)
    built.set_statistics(
        torch.randn(50, FEATURE_DIM),
        torch.randn(60, HIDDEN_DIM),
        torch.randn(NUM_CLASSES, HIDDEN_DIM),
    )
    return built.eval()


def test_embedding_is_a_unit_learned_part_and_a_weighted_naming_part(heads: LiteHeads) -> None:
    embeddings = heads.embed_images(torch.randn(5, FEATURE_DIM))
    torch.testing.assert_close(embeddings[:, :16].norm(dim=1), torch.ones(5))
    torch.testing.assert_close(embeddings[:, 16:].norm(dim=1), torch.full((5,), 0.5**0.5))


def test_naming_part_of_a_certain_class_is_that_of_its_name(heads: LiteHeads) -> None:
    features = torch.zeros(1, FEATURE_DIM)
    features[0, -NUM_CLASSES + 7] = 100.0
    expected = torch.nn.functional.normalize(heads.class_directions[7], dim=0) * 0.5**0.5
    torch.testing.assert_close(heads.embed_images(features)[0, 16:], expected)


def test_gradients_reach_both_heads_and_nothing_else(heads: LiteHeads) -> None:
    images, texts = (
        heads.embed_images(torch.randn(4, FEATURE_DIM)),
        heads.embed_texts(torch.randn(4, HIDDEN_DIM)),
    )
    (images @ texts.T).sum().backward()
    assert {
        name.split(".")[0]
        for name, parameter in heads.named_parameters()
        if parameter.grad is not None
    } == {
        "image_head",
        "text_head",
    }


def test_saved_heads_embed_alike(heads: LiteHeads, tmp_path: Path) -> None:
    save_heads(heads, tmp_path)
    loaded = load_heads(tmp_path)
    features = torch.randn(3, FEATURE_DIM)
    cosine = torch.nn.functional.cosine_similarity(
        loaded.embed_images(features), heads.embed_images(features)
    )
    assert cosine.min() > 0.9999


def test_dropout_is_off_after_loading(heads: LiteHeads, tmp_path: Path) -> None:
    save_heads(heads, tmp_path)
    loaded = load_heads(tmp_path)
    features = torch.randn(3, FEATURE_DIM)
    assert torch.equal(loaded.embed_images(features), loaded.embed_images(features))
