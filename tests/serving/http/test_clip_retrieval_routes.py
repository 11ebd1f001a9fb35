"""clip-retrieval's routes, as its client calls them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import Running, served
from PIL import Image

from rdm.database import RetrievalDatabase

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backend(
    tmp_path_factory: pytest.TempPathFactory, encoder_config: Path, database: RetrievalDatabase
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("clip")
    option = "--clip-retrieval"
    with served(folder, encoder_config, {"birds": database}, None, option) as running:
        yield running.ready()


def query(backend: Running, **asked: Any) -> Any:
    """Send what clip-retrieval 2.45's client sends."""
    body = {
        "text": None,
        "image": None,
        "image_url": None,
        "embedding_input": None,
        "deduplicate": True,
        "use_safety_model": False,
        "use_violence_detector": False,
        "indice_name": "birds",
        "use_mclip": False,
        "aesthetic_score": 0,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": 3,
        "num_result_ids": 5,
        **asked,
    }
    return backend.client.post("knn-service", json=body)


def test_the_databases_are_its_indices(backend: Running) -> None:
    assert backend.client.get("indices-list").json() == ["birds"]


def test_a_vector_finds_what_the_database_finds(
    backend: Running, database: RetrievalDatabase
) -> None:
    vector = database.embeddings(np.array([7])).astype(np.float32)
    ids, similarities = database.search_vectors(vector, 5)
    answer = query(backend, embedding_input=vector[0].tolist())
    found = answer.json()
    assert [one["id"] for one in found] == ids[0].tolist()
    np.testing.assert_allclose([one["similarity"] for one in found], similarities[0], atol=1e-5)
    assert "deduplicate" in answer.headers["rdm-ignored"]
    # The first three are described and shown.
    assert ["image" in one for one in found] == [True, True, True, False, False]
    assert Image.open(io.BytesIO(base64.b64decode(found[0]["image"]))).size == (32, 32)


def test_texts_and_pictures_are_queries(backend: Running, encoded: Callable[..., bytes]) -> None:
    assert len(query(backend, text="an owl").json()) == 5
    picture = base64.b64encode(encoded(3)).decode()
    assert len(query(backend, image=picture).json()) == 5


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 422),
        ({"embedding_input": []}, 422),
        ({"embedding_input": [0.0] * 16}, 422),
        ({"embedding_input": [1.0] * 3}, 422),
        ({"image": "no base64!"}, 415),
        ({"image": "AAAA"}, 415),
        ({"image_url": "http://169.254.169.254/"}, 422),
        ({"text": "x", "indice_name": "none"}, 404),
        ({"text": "x", "num_images": 0}, 422),
    ],
)
def test_what_cannot_be_searched_is_a_problem(
    backend: Running, asked: dict[str, Any], status: int
) -> None:
    answer = query(backend, **asked)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_metadata_are_told_by_id(backend: Running, database: RetrievalDatabase) -> None:
    answer = backend.client.post("metadata", json={"ids": [4, 2], "indice_name": "birds"})
    records = database.records(np.array([4, 2]))
    assert [(one["id"], one["metadata"]["image_id"]) for one in answer.json()] == [
        (record.patch_id, record.image_id) for record in records
    ]
    assert backend.client.post("metadata", json={"ids": [99999]}).status_code == 404


def test_without_the_option_there_are_no_such_routes(server: Running) -> None:
    assert server.client.get("indices-list").status_code == 404
