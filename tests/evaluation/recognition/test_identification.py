import numpy as np
import pytest

from rdm.evaluation.recognition.identification import identify


@pytest.fixture
def contexts() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 16))


def test_pictures_that_equal_their_contexts_are_all_identified(contexts: np.ndarray) -> None:
    found, own = identify(contexts, contexts)
    assert (found.num_contexts, found.top1.value, found.auc) == (40, 1.0, 1.0)
    assert own.tolist() == [1.0] * 40
    assert found.p_value == pytest.approx(1 / 2001)
    assert found.z_score > 10


def test_pictures_of_nothing_are_at_chance(contexts: np.ndarray) -> None:
    found, own = identify(np.random.default_rng(1).normal(size=(40, 16)), contexts)
    assert found.auc_low < 0.5 < found.auc_high
    assert 0.01 < found.p_value < 0.99
    assert own.shape == (40,)


def test_a_common_shift_of_either_set_changes_nothing(contexts: np.ndarray) -> None:
    samples = contexts + np.random.default_rng(2).normal(size=contexts.shape)
    plain, shifted = identify(samples, contexts)[0], identify(samples + 100, contexts - 50)[0]
    assert shifted.auc == pytest.approx(plain.auc)
    assert shifted.top1 == plain.top1


def test_equal_contexts_count_half_and_identify_nothing() -> None:
    contexts = np.repeat(np.eye(2), 2, axis=0)  # each twice
    found, own = identify(contexts, contexts)
    assert found.top1.value == 0
    assert own.tolist() == pytest.approx([(2 + 0.5) / 3] * 4)


def test_auc_is_the_share_of_other_contexts_that_are_farther() -> None:
    angles = np.radians([0, 90, 180, 270])
    contexts = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # nearest is the next but one by 60 degrees, own is 120 away
    turned = np.radians([120, 210, 300, 30])
    found, own = identify(np.stack([np.cos(turned), np.sin(turned)], axis=1), contexts)
    assert own.tolist() == pytest.approx([1 / 3] * 4)
    assert found.top1.value == 0


@pytest.mark.parametrize("shape", [(2, 16), (40, 8)])
def test_too_few_or_other_shapes_are_refused(contexts: np.ndarray, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="identification of"):
        identify(np.ones(shape), contexts[: shape[0]])
