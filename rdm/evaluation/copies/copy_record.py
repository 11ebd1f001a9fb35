"""What a search for copies measures, and its record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from rdm.config import Config
from rdm.evaluation.metrics.intervals import Share
from rdm.generators.sample_settings import SampleSettings, Setting

FORMAT = 1  # of the record's file


class CopyConfig(Config):
    """How much is drawn and compared."""

    num_samples: int = Field(default=256, ge=20, description="samples, at most")
    num_compared: int = Field(
        default=1000, ge=20, description="photographs of training, and as many held-out ones"
    )
    num_planted: int = Field(default=64, ge=5, description="planted copies of each kind")
    false_positives: float = Field(
        default=0.01,
        gt=0,
        le=0.1,
        description="share of held-out photographs that the detector may call copies",
    )
    seed: int = Field(default=0, ge=0, description="of the choice of photographs, and of samples")
    settings: SampleSettings = SampleSettings()


@dataclass(frozen=True)
class CopyInputs:
    """What is compared with what.

    Attributes:
        model: a model with neighbors: `assets://NAME` or a folder.
        trained_on: specification of photographs that training saw.
        held_out: specification of photographs of the same kinds that no training saw.
        encoder: whose embeddings condition the model; None: the one that the model names.
    """

    model: str | Path
    trained_on: str
    held_out: str
    encoder: str | None = None


class PlantedFound(Config):
    """How many planted copies of a kind the detector finds."""

    kind: str
    found: Share


class NearestInTraining(Config):
    """How often the nearest photograph is one of training, of as many held-out ones."""

    share: Share = Field(description="chance is 0.5 exactly where nothing is remembered")
    p_value: float = Field(description="two-sided, exact binomial test against 0.5")


class MeanWithInterval(Config):
    """A mean with its 95% interval (Student's t)."""

    mean: float
    low: float
    high: float


class Copies(Config):
    """The whole measurement."""

    format: int = FORMAT
    key: str
    model: str
    model_digest: str
    trained_on: str
    held_out: str
    num_samples: int
    num_compared: int = Field(description="photographs of each side")
    settings: dict[str, Setting]
    features: str

    thresholds: dict[str, float] = Field(
        description="of matched places and of brightness; each flags half of the allowed share "
        "of held-out photographs"
    )
    planted: tuple[PlantedFound, ...]
    copies_of_training: Share = Field(description="samples that match a training photograph")
    copies_of_held_out: Share = Field(description="the same number of held-out ones: the floor")
    photographs_flagged: Share = Field(description="held-out queries that match a training one")

    nearest_in_training: NearestInTraining
    photographs_nearest_in_training: NearestInTraining = Field(
        description="the same of held-out photographs: how alike the two sides are"
    )
    nearer_than_truth: Share = Field(
        description="samples nearer to their first neighbor than the held-out photograph is "
        "whose neighbors these are; 0.5 for draws of the true distribution"
    )
    pull_of_first_neighbor: MeanWithInterval = Field(
        description="similarity to the first neighbor, less that of the same seed drawn without it"
    )
    device: str
