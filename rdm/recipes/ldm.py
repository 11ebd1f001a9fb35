"""LDM as the baseline of RDM: the same networks, samples and settings, and no neighbors."""

from __future__ import annotations

from rdm.recipes.rdm import rdm_imagenet, rdm_tiny
from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig

_WITHOUT_NEIGHBORS = (
    "objective.conditions.neighbors.dropout=1",
    # A pool would be loaded for every sample, only to be dropped.
    "objective.conditions.neighbors.pool=null",
)


def ldm_imagenet() -> TrainConfig:
    """Return the baseline of `rdm-imagenet`: the same without neighbors.

    A null context leaves the output bias of each cross-attention block and nothing else, so
    26,675,520 of the parameters see no gradient but weight decay.
    """
    return rdm_imagenet().with_overrides(["recipe=ldm-imagenet", *_WITHOUT_NEIGHBORS])


def ldm_tiny() -> TrainConfig:
    """Return the baseline of `rdm-tiny`: the same without neighbors."""
    return rdm_tiny().with_overrides(["recipe=ldm-tiny", *_WITHOUT_NEIGHBORS])


RECIPES = {
    "ldm-tiny": Recipe("rdm-tiny without neighbors: its baseline", ldm_tiny),
    "ldm-imagenet": Recipe("rdm-imagenet without neighbors: its baseline", ldm_imagenet),
}
