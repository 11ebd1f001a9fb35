from __future__ import annotations

import numpy as np
import pytest
import torch

from rdm.generators.sample_settings import DrawStep, SampleSettings
from rdm.sampling.drawing.batches import filled, rows_at_once


def test_the_shape_is_that_of_the_settings_or_of_the_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert rows_at_once(SampleSettings(), cpu) == 8
    assert rows_at_once(SampleSettings(), gpu) == 32
    assert rows_at_once(SampleSettings(batch_size=3), cpu) == 3


def test_a_batch_is_filled_up_and_what_fills_it_is_left_out() -> None:
    batch = filled(["a", "b"], 5)
    assert len(batch.rows) == 5
    assert batch.rows[:2] == ("a", "b")
    values = np.arange(5, dtype=np.uint8)
    assert batch.counted(values).tolist() == [0, 1]


def test_a_row_keeps_its_place() -> None:
    batch = filled(["a"], 4, first=2)
    assert batch.rows == ("a",) * 4
    assert batch.counted(np.arange(4, dtype=np.uint8)).tolist() == [2]


@pytest.mark.parametrize(("count", "first"), [(0, 0), (5, 0), (1, 4)])
def test_rows_that_do_not_fit_are_refused(count: int, first: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        filled(["a"] * count, 4, first)


def test_a_listener_hears_of_the_rows_that_count_alone() -> None:
    heard: list[DrawStep] = []
    listener = filled([0, 1], 3).listener(heard.append)
    assert listener is not None
    x0 = torch.arange(3)
    listener(DrawStep((5, 6, 5), 1, 2, lambda: np.arange(3, dtype=np.uint8), x0))
    assert (heard[0].seeds, heard[0].index, heard[0].total) == ((5, 6), 1, 2)
    assert heard[0].preview().tolist() == heard[0].x0.tolist() == [0, 1]
