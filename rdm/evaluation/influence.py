"""What neighbors do to a picture, told by what the network expects before it has seen any of it.

At the noisiest level there is nothing to see but the context, so one evaluation gives the mean of
the pictures that the context stands for. It costs a second where drawing pictures costs a minute,
and no chance of a draw is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.model_folder import Model
from rdm.sampling.drawing.attribution import cells_of, expected_cells, token_influences
from rdm.sampling.drawing.draw import known_of
from rdm.sampling.drawing.pipeline import conditioned
from rdm.sampling.retrieval.conditioning import Conditioning
from rdm.sampling.retrieval.queries import Query


@dataclass(frozen=True)
class Retrieved:
    """Queries with the neighbors that a database gave them.

    Attributes:
        database: where they were looked up.
        queries: whose neighbors condition.
    """

    database: RetrievalDatabase
    queries: Sequence[Query]


def readout(
    model: Model, first: Retrieved, second: Retrieved, seed: int = 0
) -> NDArray[np.float64]:
    """Return for each query how far the expected picture follows its neighbors, -1 .. 1, [Q].

    It is the cosine of two differences: of what the network expects with the first neighbors and
    with the second, and of the mean latents of those neighbors' pictures; both are reduced to 4x4
    cells. A network that ignores its neighbors has 0 everywhere; without a relation the values lie
    symmetrically about 0.

    Args:
        model: a diffusion model that reads neighbors.
        first: the queries with the neighbors of one database.
        second: the same queries with those of another.
        seed: of the noise, which both sides share.

    Raises:
        UsageError: the model reads no neighbors, or is no diffusion.
    """
    _check(model)
    expected = _cells_of(model, first, seed) - _cells_of(model, second, seed)
    pictured = _mean_latents(model, first) - _mean_latents(model, second)
    return cosines(expected, pictured)


def influences(model: Model, retrieved: Retrieved, seed: int = 0) -> NDArray[np.float64]:
    """Return each neighbor's share in what the network expects, [Q, k]: Shapley values, 1 in sum.

    A set of neighbors is worth how far the expected picture has moved from that without neighbors
    towards that with all of them. A neighbor's value is what it adds, averaged over the orders in
    which neighbors may join (Shapley 1953): neighbors that say the same share it.

    Args:
        model: a diffusion model that reads neighbors, and was trained without them too.
        retrieved: queries with at most eight neighbors.
        seed: of the noise.

    Raises:
        UsageError: the model reads no neighbors, is no diffusion, or there are too many neighbors.
    """
    _check(model)
    return token_influences(model, _asked(model, retrieved), seed)


def cosines(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosines [Q] of rows [Q, D]; 0 where a row is zero."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.where(lengths == 0, 1.0, lengths)


def _check(model: Model) -> None:
    if not model.reads_neighbors:
        raise UsageError(
            "the model reads no neighbors, so they have no influence",
            where=model.directory,
            fix="a model of a recipe with neighbors",
        )


def _asked(model: Model, retrieved: Retrieved) -> list[Conditioning]:
    return conditioned(model, retrieved.database, [(query, 0) for query in retrieved.queries])


def _cells_of(model: Model, retrieved: Retrieved, seed: int) -> NDArray[np.float64]:
    return expected_cells(model, known_of(model.info, _asked(model, retrieved)), seed)


def _mean_latents(model: Model, retrieved: Retrieved) -> NDArray[np.float64]:
    """Return the mean latents of the pictures of each query's neighbors, in cells [Q, C * 16]."""
    side = model.info.resolution or 0
    ids = np.stack([query.neighbor_ids for query in retrieved.queries])
    patches, places = np.unique(ids, return_inverse=True)
    size = (side, side)
    squares = [
        np.asarray(patch.resize(size, Image.Resampling.LANCZOS))
        for patch in retrieved.database.pixels(patches)
    ]
    images = torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2).copy())
    latents = cells_of(model.generator.space.of_pictures(images).to(model.device))
    return latents[places.reshape(ids.shape)].mean(axis=1)
