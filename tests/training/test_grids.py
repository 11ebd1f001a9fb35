from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.training.grids import is_grid_step, latest_grid, write_grid


@pytest.mark.parametrize(
    ("per_decade", "steps"),
    [
        (0, []),
        (1, [10, 100, 1000, 2500]),
        (2, [10, 32, 100, 316, 1000, 2500]),
        (3, [10, 22, 46, 100, 215, 464, 1000, 2154, 2500]),
    ],
)
def test_steps_lie_in_equal_ratios_and_end_with_the_last(per_decade: int, steps: list[int]) -> None:
    assert [step for step in range(1, 2501) if is_grid_step(step, per_decade, 2500)] == steps


def test_a_grid_holds_every_picture_row_by_row(tmp_path: Path) -> None:
    pictures = np.stack([np.full((4, 6, 3), 10 * number, np.uint8) for number in range(5)])
    write_grid(pictures, tmp_path / "grids" / "step-00000010.png")
    grid = np.asarray(Image.open(tmp_path / "grids" / "step-00000010.png"))
    assert grid.shape == (2 * 6 - 2, 3 * 8 - 2, 3)
    assert [grid[6 * row, 8 * column, 0] for row in range(2) for column in range(3)] == [
        0,
        10,
        20,
        30,
        40,
        255,
    ]
    assert latest_grid(tmp_path) == tmp_path / "grids" / "step-00000010.png"
