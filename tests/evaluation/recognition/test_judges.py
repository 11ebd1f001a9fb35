import importlib

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from rdm.encoders.image_tower import image_weights_file, load_image_tower
from rdm.errors import SourceError, UsageError
from rdm.evaluation.recognition.judges import (
    LITE2_POOLED,
    ImageNetJudge,
    LinearProbe,
    Lite2,
    imagenet_columns,
    imagenet_wnids,
)


def blobs(per_class: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return three classes of normal features [3 n, 8] around fixed centers, and their labels."""
    centers = 3 * np.eye(3, 8)
    labels = np.repeat(np.arange(3), per_class)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 8))
    return centers[labels] + spread * noise, labels


def test_imagenet_has_a_thousand_sorted_ids() -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert wnids == sorted(wnids)
    assert wnids[0] == "n01440764"


def test_columns_are_those_of_imagenet() -> None:
    assert imagenet_columns(["n01443537", "n15075141", "n01440764"]).tolist() == [1, 999, 0]


def test_class_that_is_none_of_imagenet_is_named() -> None:
    with pytest.raises(UsageError, match="2 of the classes .* first 'n00000000'"):
        imagenet_columns(["n01443537", "n00000000", "owl"])


def test_imagenet_judge_compares_the_named_classes_alone() -> None:
    features = np.zeros((1, LITE2_POOLED + 1000), np.float32)
    features[0, LITE2_POOLED : LITE2_POOLED + 2] = [5, 2]  # tench, goldfish
    features[0, LITE2_POOLED + 999] = 1  # toilet tissue
    found = ImageNetJudge(["n15075141", "n01443537"])(features)
    assert found[0].tolist() == pytest.approx(log_softmax([1.0, 2.0]).tolist())


@pytest.mark.slow
@torch.no_grad()
def test_lite2_has_the_logits_of_the_published_network() -> None:
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(
        "efficientnet-lite2"
    )
    network.eval().load_state_dict(torch.load(image_weights_file(2), weights_only=True))
    pixels = torch.randint(
        0, 256, (1, 3, 260, 260), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    expected = network((pixels.float() - 127) / 128)
    found = load_image_tower(2)(pixels)[:, -1000:]
    assert found.sub(expected).abs().max() < 1e-3


def test_lite2_sees_each_picture_in_whatever_batch() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    network = Lite2()
    together, alone = network(pictures), network([pictures[1]])
    assert together.shape == (2, LITE2_POOLED + 1000)
    assert together[1] == pytest.approx(alone[0], abs=1e-3)
    assert network([]).shape == (0, LITE2_POOLED + 1000)


def test_probe_learns_classes_that_are_apart() -> None:
    probe = LinearProbe.fit(*blobs(40, seed=0), classes=3)
    features, labels = blobs(200, seed=1)
    assert (probe(features).argmax(1) == labels).mean() > 0.93
    assert probe.validation_accuracy > 0.9
    assert probe.num_rows == 120


def test_probe_returns_log_probabilities() -> None:
    probe = LinearProbe.fit(*blobs(10, seed=0), classes=3)
    assert np.exp(probe(blobs(5, seed=1)[0])).sum(1) == pytest.approx(1)


def test_probe_minimizes_its_loss() -> None:
    features, labels = blobs(40, seed=0)
    probe = LinearProbe.fit(features, labels, classes=3)
    scaled = (features - probe.mean) / probe.deviation
    residual = np.exp(probe(features)) - np.eye(3)[labels]
    assert np.abs(scaled.T @ residual / len(labels) + probe.penalty * probe.weights).max() < 1e-4
    assert np.abs(residual.mean(0)).max() < 1e-4


def test_noise_gets_a_larger_penalty_than_classes_that_are_apart() -> None:
    rng = np.random.default_rng(0)
    noise = LinearProbe.fit(rng.normal(size=(60, 8)), np.repeat(np.arange(3), 20), classes=3)
    assert noise.penalty > LinearProbe.fit(*blobs(20, seed=0), classes=3).penalty


def test_labels_in_any_order_give_the_same_probe_accuracy() -> None:
    features, labels = blobs(40, seed=0)
    order = np.random.default_rng(1).permutation(len(labels))
    test, expected = blobs(100, seed=2)
    found = [
        (probe(test).argmax(1) == expected).mean()
        for probe in (
            LinearProbe.fit(features, labels, 3),
            LinearProbe.fit(features[order], labels[order], 3),
        )
    ]
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_class_with_too_few_pictures_is_named() -> None:
    features, labels = blobs(8, seed=0)
    with pytest.raises(SourceError, match="class 2 has 4 pictures"):
        LinearProbe.fit(features[:20], labels[:20], classes=3)
