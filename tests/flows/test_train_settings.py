"""What the flow `train` refuses at once, and what it tries again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.states import Failed

from flows.train import may_succeed_again, train
from rdm.errors import (
    CacheError,
    JobError,
    RdmError,
    SourceError,
    StorageError,
    TrainingError,
    UsageError,
)


def fails(tmp_path: Path, **parameters: Any) -> RdmError:
    """Run the flow's function where no task can run: an error comes before any does."""
    with pytest.raises(RdmError) as caught:
        train.fn(out=str(tmp_path / "run"), **parameters)
    return caught.value


@pytest.mark.parametrize("recipe", ["autoencoder-kl-f4", "clip-lite"])
def test_a_recipe_of_photographs_trains_on_the_queries_and_prepares_nothing(
    tmp_path: Path, recipe: str
) -> None:
    error = fails(
        tmp_path, recipe=recipe, queries="folder:///no/where", database="nowhere", cache="nowhere"
    )
    assert isinstance(error, SourceError)


def test_a_batch_that_cannot_be_shared_is_refused_before_neighbors_are_built(
    tmp_path: Path,
) -> None:
    parameters = {"queries": "folder:///no/where", "database": "nowhere", "cache": "nowhere"}
    error = fails(tmp_path, **parameters, overrides=["batch_size=33", "num_ranks=2"])
    assert "cannot be shared by 2 ranks" in error.what


def test_a_recipe_of_latents_needs_a_database(tmp_path: Path) -> None:
    assert "needs --database" in fails(tmp_path, queries="folder:///no/where", cache="nowhere").what


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (JobError("a rank was killed"), True),
        (StorageError("the disk is full"), True),
        (OSError("stale handle"), True),
        (UsageError("no such setting"), False),
        (CacheError("no cache"), False),
        (TrainingError("another configuration"), False),
    ],
)
def test_only_what_may_succeed_is_tried_again(error: BaseException, again: bool) -> None:
    assert may_succeed_again(None, None, Failed(data=error)) is again  # type: ignore[arg-type]
