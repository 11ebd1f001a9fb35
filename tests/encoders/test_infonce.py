import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdm.encoders.contrastive_loss import (
    LOGIT_SCALE_INIT,
    contrastive_logits,
    info_nce,
    recall_at_k,
    top_k_accuracy,
    zero_shot_classifier,
)


def random_pairs(count: int, dim: int = 512, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator), torch.randn(
        count, dim, generator=generator
    )


@pytest.mark.parametrize("count", [8, 64, 512])
def test_loss_of_random_pairs_is_the_logarithm_of_their_number(count: int) -> None:
    images, texts = random_pairs(count)
    assert float(info_nce(contrastive_logits(images, texts, 0.0))) == pytest.approx(
        math.log(count), abs=0.02
    )


def test_transposing_images_and_texts_leaves_the_loss_equal() -> None:
    images, texts = random_pairs(32)
    forward = info_nce(contrastive_logits(images, texts, LOGIT_SCALE_INIT))
    assert torch.equal(
        forward, info_nce(contrastive_logits(texts, images, LOGIT_SCALE_INIT).clone())
    )


def test_perfect_pairs_at_the_greatest_scale_have_no_loss() -> None:
    pairs = torch.eye(64)
    assert float(info_nce(contrastive_logits(pairs, pairs, math.log(100.0)))) < 1e-6


def test_permuting_prompts_permutes_the_logits() -> None:
    images, texts = random_pairs(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    logits = contrastive_logits(images, texts, LOGIT_SCALE_INIT)
    torch.testing.assert_close(
        contrastive_logits(images, texts[order], LOGIT_SCALE_INIT), logits[:, order]
    )


def test_initial_scale_is_that_of_the_paper() -> None:
    assert math.exp(LOGIT_SCALE_INIT) == pytest.approx(14.2857, abs=1e-4)


def test_scale_is_clamped_at_one_hundred() -> None:
    pair = torch.ones(1, 4)
    assert float(contrastive_logits(pair, pair, 50.0)) == pytest.approx(100.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.floats(0.1, 100.0))
def test_length_of_the_embeddings_does_not_matter(count: int, factor: float) -> None:
    images, texts = random_pairs(count, dim=8)
    torch.testing.assert_close(
        contrastive_logits(images * factor, texts, 1.0),
        contrastive_logits(images, texts, 1.0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_label_smoothing_raises_the_loss_of_perfect_pairs() -> None:
    logits = contrastive_logits(torch.eye(8), torch.eye(8), math.log(100.0))
    assert float(info_nce(logits, 0.1)) > 1.0


def test_recall_counts_any_relevant_item_and_ties_against() -> None:
    similarities = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3], [0.4, 0.4, 0.1]])
    relevant = np.array([[False, True, True], [False, True, False], [True, False, False]])
    assert recall_at_k(similarities, relevant, ks=(1, 2)) == {
        "recall@1": pytest.approx(1 / 3),
        "recall@2": 1.0,
    }


def test_recall_does_not_exceed_one_or_fall_with_k() -> None:
    rng = np.random.default_rng(0)
    recalls = list(
        recall_at_k(
            rng.normal(size=(50, 20)),
            np.eye(50, 20, dtype=bool) | (rng.random((50, 20)) < 0.2),
            ks=(1, 5, 10, 20),
        ).values()
    )
    assert recalls == sorted(recalls)
    assert recalls[-1] <= 1.0


def test_top_k_accuracy_of_constant_scores_is_zero() -> None:
    assert top_k_accuracy(np.zeros((4, 10)), np.arange(4), ks=(1, 5)) == {"top1": 0.0, "top5": 0.0}


def test_zero_shot_classifier_averages_the_prompts_of_a_class() -> None:
    vectors = {"a cat": [2.0, 0.0], "cat": [0.0, 3.0], "a dog": [1.0, 0.0], "dog": [1.0, 0.0]}
    classes = zero_shot_classifier(
        lambda texts: np.array([vectors[text] for text in texts]),
        ["cat", "dog"],
        templates=("a {}", "{}"),
    )
    np.testing.assert_allclose(classes, [[math.sqrt(0.5), math.sqrt(0.5)], [1.0, 0.0]])
