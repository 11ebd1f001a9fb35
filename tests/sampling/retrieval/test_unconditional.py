from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, NeighborTable, RetrievalDatabase, build_neighbors
from rdm.errors import DatabaseError, UsageError
from rdm.sampling import Model, proposed_queries
from rdm.sampling.request.sample_request import request_of
from rdm.sampling.retrieval.look_up import look_up
from rdm.sources import CropConfig, QuerySetConfig


@pytest.fixture(scope="module")
def with_neighbors(
    tmp_path_factory: pytest.TempPathFactory,
    database: RetrievalDatabase,
    encoded: Callable[..., bytes],
) -> RetrievalDatabase:
    """The database, with the neighbors of six pictures."""
    base = tmp_path_factory.mktemp("proposal")
    shutil.copytree(database.folder.local(""), base / "db")
    (base / "queries").mkdir()
    for number in range(6):
        (base / "queries" / f"q{number}.jpg").write_bytes(encoded(50 + number))
    queries = QuerySetConfig(
        source=f"folder://{base}/queries", crop=CropConfig(frame_size=40, patch_size=32)
    )
    config = NeighborConfig(queries=queries, k_stored=4)
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_neighbors(str(base / "db"), "train", config, pool)
    return RetrievalDatabase.open(str(base / "db"))


@pytest.fixture(scope="module")
def asked(model: Model, with_neighbors: RetrievalDatabase) -> Model:
    """A model that was trained with those neighbors."""
    table = NeighborTable(with_neighbors.folder, "train", with_neighbors.version)
    digest = {"queries_digest": table.info.queries_digest}
    return replace(model, info=model.info.model_copy(update=digest))


def found(model: Model, database: RetrievalDatabase, **fields: Any) -> list[list[int]]:
    request = request_of({"unconditional": True, "settings": {"k": 3}, **fields})
    rows = look_up(request, model.info, {"birds": database})
    return [row.query.neighbor_ids.tolist() for row in rows]


def test_a_look_up_draws_the_patches_of_p_d(
    asked: Model, with_neighbors: RetrievalDatabase
) -> None:
    old = proposed_queries(asked, with_neighbors, range(20), top_m=0.5, k=3)
    expected = [query.neighbor_ids.tolist() for query in old]
    assert found(asked, with_neighbors, seeds="0-19", top_m=0.5) == expected


def test_what_is_excluded_is_not_drawn_either(
    asked: Model, with_neighbors: RetrievalDatabase
) -> None:
    first = {row[0] for row in found(asked, with_neighbors, seeds="0-29", top_m=1)}
    gone = sorted(first)[:3]
    retrieval = {"tokens": "query", "exclude": {"patches": gone}}
    drawn = found(asked, with_neighbors, seeds="0-29", top_m=1, retrieval=retrieval)
    assert not {row[0] for row in drawn} & set(gone)
    everything = with_neighbors.living_ids().tolist()
    with pytest.raises(UsageError, match="everything that p_D could draw is excluded"):
        found(asked, with_neighbors, retrieval={"exclude": {"patches": everything}})
    others = sorted(set(everything) - set(sorted(first)[:2]))
    with pytest.raises(UsageError, match="what is excluded leaves 2 of"):
        found(asked, with_neighbors, top_m=1, retrieval={"exclude": {"patches": others}})


def test_cluster_centers_need_no_neighbors_of_training(
    model: Model, database: RetrievalDatabase
) -> None:
    rows = found(model, database, seeds="0-49", centers=4, retrieval={"tokens": "query"})
    counts = np.unique(np.array(rows)[:, 0], return_counts=True)[1]
    assert 2 <= len(counts) <= 4
    # Each as often: 50 draws of at most four leave no one out.
    assert counts.min() >= 4
    assert found(model, database, seeds="7", centers=4, retrieval={"tokens": "query"}) == [rows[7]]


def test_p_d_that_is_not_known_is_no_uniform_draw(
    model: Model, database: RetrievalDatabase
) -> None:
    with pytest.raises(DatabaseError, match="p_D is not known"):
        found(model, database)
