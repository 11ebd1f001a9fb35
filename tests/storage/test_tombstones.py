from __future__ import annotations

import numpy as np
import pytest

from rdm.storage import living_rows


@pytest.mark.parametrize(
    ("tombstones", "first", "count", "living"),
    [
        ([], 5, 3, [True, True, True]),
        ([4, 6, 8], 5, 3, [True, False, True]),
        ([5, 6, 7], 5, 3, [False, False, False]),
        ([0, 1], 5, 0, []),
    ],
)
def test_rows_live_unless_their_patch_is_a_tombstone(
    tombstones: list[int], first: int, count: int, living: list[bool]
) -> None:
    assert living_rows(np.array(tombstones, np.int64), first, count).tolist() == living
