"""A small database, a model of random weights, and a server of both in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_server import Running, build_database, served
from random_model import write_random_model

from rdm.database import RetrievalDatabase


@pytest.fixture(scope="session")
def database(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], tiny_encoder: str
) -> RetrievalDatabase:
    root = tmp_path_factory.mktemp("serving")
    return build_database(root, encoded, tiny_encoder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, database: RetrievalDatabase) -> Path:
    return write_random_model(tmp_path_factory.mktemp("serving") / "model", database)


@pytest.fixture(scope="session")
def encoder_config(tiny_encoder: str) -> Path:
    """The file that describes the tiny encoder's network."""
    return Path(tiny_encoder.partition("/")[2]).parent / "tiny-clip.json"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    encoder_config: Path,
    database: RetrievalDatabase,
    model_folder: Path,
) -> Iterator[Running]:
    """A server that is ready, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("server")
    with served(folder, encoder_config, {"birds": database}, model_folder) as running:
        yield running.ready()
