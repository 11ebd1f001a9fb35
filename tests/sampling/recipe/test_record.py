from __future__ import annotations

import pytest
from written_recipe import neighbor, recipe

from rdm.sampling.recipe.record import MAX_PNG_BYTES


@pytest.mark.parametrize("author", ["x" * 1000, "写" * 100_000], ids=["many", "huge"])
def test_the_recipe_of_a_picture_is_bounded_and_says_what_was_left_out(author: str) -> None:
    neighbors = [neighbor(number, author=author) for number in range(500)]
    long = recipe(0, neighbors=neighbors, query={"kind": "text", "label": "w" * 10**6})
    carried = long.for_png()
    assert len(carried.model_dump_json().encode()) <= MAX_PNG_BYTES
    assert len(carried.neighbors) + carried.neighbors_left_out == 500
    assert carried.neighbors == long.neighbors[: len(carried.neighbors)]


def test_a_recipe_that_fits_is_carried_whole() -> None:
    assert recipe().for_png() == recipe()


def test_credits_alone_keep_neighbors_and_model_and_drop_what_was_asked() -> None:
    carried = recipe(attribution={"attention": (0.5, 0.25, 0.25)}).for_png("credits")
    assert carried.neighbors == recipe().neighbors
    assert carried.model == recipe().model
    assert carried.metadata == "credits"
    assert (carried.query, carried.seed, carried.settings, carried.batch) == (None,) * 4
    assert (carried.tokens, carried.attribution) == ((), None)
