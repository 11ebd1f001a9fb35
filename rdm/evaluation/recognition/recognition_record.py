"""What a recognition measures, and its record: rows of shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.config import Config
from rdm.evaluation.metrics.fidelity import Fidelity
from rdm.evaluation.metrics.intervals import Share, wilson_interval
from rdm.evaluation.recognition.identification import Identification
from rdm.evaluation.recognition.labelled import PictureClass
from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.recipe.record import Setting

FORMAT = 1  # of the record's file
JudgeName = Literal["imagenet", "probe"]


class RecognitionConfig(Config):
    """How much is drawn and judged."""

    per_class: int = Field(default=10, ge=1, description="samples, and photographs, of each class")
    num_queries: int = Field(
        default=256, ge=3, description="samples where pictures have no classes"
    )
    probe_per_class: int = Field(
        default=300, ge=5, description="pictures of a class that a probe is fitted to"
    )
    distances: bool = Field(default=False, description="KID and FID too, by Inception features")
    seed: int = Field(default=0, ge=0, description="of contexts and samples")
    settings: SampleSettings = SampleSettings(batch_size=32)


@dataclass(frozen=True)
class RecognitionInputs:
    """What is judged by what.

    Attributes:
        model: a model: `assets://NAME` or a folder.
        pictures: specification of pictures that no training has seen.
        classes: of their labels; empty: identification alone is measured.
        judge: who names the classes.
        probe_pictures: specification of labelled pictures that the probe is fitted to.
        encoder: whose embeddings condition the model; None: the one that the model names.
    """

    model: str | Path
    pictures: str
    classes: tuple[PictureClass, ...] = ()
    judge: JudgeName = "imagenet"
    probe_pictures: str | None = None
    encoder: str | None = None


class RecognitionRow(Config):
    """How many pictures of a kind the judge recognizes; `top5` is None for five classes or
    fewer."""

    name: str
    num_pictures: int
    top1: Share
    top5: Share | None


class Recognition(Config):
    """The whole measurement."""

    format: int = FORMAT
    key: str
    model: str
    model_digest: str
    pictures: str
    pictures_digest: str
    num_samples: int
    seed: int
    settings: dict[str, Setting]
    judge: str | None
    num_classes: int | None
    rows: tuple[RecognitionRow, ...] = Field(description="empty without classes")
    ratio: float | None = Field(description="top-1 of samples / top-1 of reconstructions")
    identification: Identification
    identification_features: str
    fidelity: dict[str, Fidelity] = Field(
        description="of reconstructions and samples, where it was asked for"
    )
    device: str


def recognition_row(
    name: str, scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> RecognitionRow:
    """Return how often the labels [N] are the best, and among the five best, of scores [N, C].

    A tie is no success.
    """
    own = scores[np.arange(len(scores)), labels]
    places = (scores >= own[:, None]).sum(axis=1) - 1
    few = scores.shape[1] <= 5
    return RecognitionRow(
        name=name,
        num_pictures=len(scores),
        top1=wilson_interval(int((places == 0).sum()), len(scores)),
        top5=None if few else wilson_interval(int((places < 5).sum()), len(scores)),
    )


def sample_rows(
    scores: NDArray[np.float64], labels: NDArray[np.int64], classes: int, seed: int
) -> list[RecognitionRow]:
    """Return the rows of samples, of samples with neighbors of another class, and of chance.

    Args:
        scores: of the judge, [N, C].
        labels: classes of the conditioning pictures, [N].
        classes: C.
        seed: of the other class that each sample is swapped with.
    """
    # A sample drawn from another class's neighbors is one of that class's samples, judged against
    # this class.

    # A cycle over the classes in random order: no class is paired with itself.
    order = np.random.default_rng(seed).permutation(classes)
    other = np.empty(classes, np.int64)
    other[order] = np.roll(order, 1)

    chance, five = 1 / classes, 5 / classes
    return [
        recognition_row("samples", scores, labels),
        recognition_row("samples, another class's neighbors", scores, other[labels]),
        RecognitionRow(
            name="chance",
            num_pictures=0,
            top1=Share(value=chance, low=chance, high=chance),
            top5=Share(value=five, low=five, high=five) if classes > 5 else None,
        ),
    ]


def ratio_of(rows: tuple[RecognitionRow, ...]) -> float | None:
    """Return top-1 of samples / top-1 of reconstructions; None where there is none, or the latter
    is 0."""
    values = {row.name: row.top1.value for row in rows}
    ceiling = values.get("reconstructions", 0.0)
    return values["samples"] / ceiling if ceiling else None
