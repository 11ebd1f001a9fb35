"""What neighbors do to a picture: exact for networks whose expectation is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from random_model import write_random_model
from torch import Tensor, nn

from rdm.context import Context
from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.evaluation.influence import Retrieved, cosines, influences, readout
from rdm.generators.generator import Generator
from rdm.generators.heads import GaussianConfig
from rdm.sampling import Model, open_model
from rdm.sampling.drawing.attribution import shapley_values
from rdm.sampling.retrieval.queries import Query

WORTH = arrays(np.float64, 8, elements=st.floats(-10, 10))


@given(WORTH)
def test_shapley_values_share_what_all_are_worth_beyond_nothing(worth: np.ndarray) -> None:
    assert shapley_values(worth).sum() == pytest.approx(worth[-1] - worth[0], abs=1e-9)


@given(arrays(np.float64, 3, elements=st.floats(-10, 10)))
def test_shapley_values_of_players_that_do_not_interact_are_their_own(own: np.ndarray) -> None:
    worth = np.array([sum(own[i] for i in range(3) if s >> i & 1) for s in range(8)])
    assert shapley_values(worth) == pytest.approx(own, abs=1e-9)


@given(WORTH)
def test_players_that_do_the_same_have_the_same_value(worth: np.ndarray) -> None:
    swapped = [0, 2, 1, 3, 4, 6, 5, 7]  # players 0 and 1 in each other's place
    values = shapley_values((worth + worth[swapped]) / 2)
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_who_adds_nothing_has_no_value() -> None:
    worth = np.array([0.0, 1.0, 0.5, 1.2])
    without_third = np.concatenate([worth, worth])
    assert shapley_values(without_third)[2] == 0


def test_cosine_with_nothing_is_zero() -> None:
    first = np.array([[1.0, 0.0], [0.0, 0.0]])
    found = cosines(first, np.array([[2.0, 2.0], [1.0, 0.0]]))
    assert found == pytest.approx([np.sqrt(0.5), 0.0])


class Oracle(nn.Module):
    """Expects the sum of the latents of its neighbors' pictures; of no neighbors, nothing."""

    def __init__(self, embeddings: Tensor, latents: Tensor, *, ignores: bool = False) -> None:
        super().__init__()
        self.embeddings, self.latents = embeddings, latents
        self.ignores = ignores
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        assert context.tokens is not None
        if self.ignores:
            return torch.zeros_like(x_t)
        nearest = (context.tokens @ self.embeddings.T).argmax(-1)
        present = (context.tokens.norm(dim=-1) > 0).float()
        return (self.latents[nearest] * present[..., None, None, None]).sum(1)


@pytest.fixture(scope="module")
def random_model(
    tmp_path_factory: pytest.TempPathFactory, whole_database: RetrievalDatabase
) -> Model:
    folder: Path = tmp_path_factory.mktemp("model")
    return open_model(write_random_model(folder, whole_database))


def oracle_of(model: Model, database: RetrievalDatabase, *, ignores: bool = False) -> Model:
    """Return the model with an oracle in place of its network."""
    ids = database.living_ids()
    images = np.stack([np.asarray(patch.resize((32, 32))) for patch in database.pixels(ids)])
    pictures = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    latents = model.generator.space.of_pictures(pictures)
    embeddings = torch.from_numpy(database.embeddings(ids).astype(np.float32))
    config = model.config.model_copy(update={"head": GaussianConfig(prediction_type="x0")})
    network = Oracle(embeddings, latents, ignores=ignores)
    generator = Generator(
        config,
        model.generator.space,
        model.generator.conditions,
        network,  # type: ignore[arg-type]
    )
    return replace(model, generator=generator)


def asked(database: RetrievalDatabase, *ids: list[int]) -> Retrieved:
    """Return queries with given neighbors."""
    nothing = np.zeros(0, np.float32)
    queries = [
        Query("text", f"{row}", nothing, np.array(row), np.zeros(len(row), np.float32))
        for row in ids
    ]
    return Retrieved(database, queries)


def test_an_expectation_that_is_the_neighbors_mean_is_followed_wholly(
    random_model: Model, whole_database: RetrievalDatabase
) -> None:
    model = oracle_of(random_model, whole_database)
    first = asked(whole_database, [0, 1], [2, 3])
    second = asked(whole_database, [2, 3], [1, 2])
    assert readout(model, first, second) == pytest.approx([1.0, 1.0], abs=0.02)


def test_a_network_that_ignores_its_neighbors_has_no_readout(
    random_model: Model, whole_database: RetrievalDatabase
) -> None:
    model = oracle_of(random_model, whole_database, ignores=True)
    first, second = asked(whole_database, [0, 1]), asked(whole_database, [2, 3])
    assert readout(model, first, second).tolist() == [0.0]


def test_neighbors_share_the_influence_and_copies_equally(
    random_model: Model, whole_database: RetrievalDatabase
) -> None:
    model = oracle_of(random_model, whole_database)
    found = influences(model, asked(whole_database, [0, 1, 0], [3, 2, 1]))
    assert found.shape == (2, 3)
    assert found.sum(1) == pytest.approx([1.0, 1.0])
    assert found[0, 0] == pytest.approx(found[0, 2])
    assert found[0, 1] != pytest.approx(found[0, 0])


def test_influence_of_neighbors_that_do_not_interact_is_their_part_of_the_sum(
    random_model: Model, whole_database: RetrievalDatabase
) -> None:
    model = oracle_of(random_model, whole_database)
    network: Oracle = model.generator.network  # type: ignore[assignment]
    pooled = torch.nn.functional.adaptive_avg_pool2d(network.latents[[0, 3]], 4).flatten(1)
    whole = pooled.sum(0)
    expected = (pooled @ whole / whole.square().sum()).tolist()
    assert influences(model, asked(whole_database, [0, 3]))[0].tolist() == pytest.approx(
        expected, abs=1e-4
    )


def test_too_many_neighbors_are_refused(
    random_model: Model, whole_database: RetrievalDatabase
) -> None:
    with pytest.raises(UsageError, match="512 subsets"):
        influences(random_model, asked(whole_database, [0] * 9))
