from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rdm.encoders.chunks import encode_filled


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8])
def test_every_chunk_has_one_size_and_no_row_is_lost(count: int) -> None:
    sizes: list[int] = []

    def encode(chunk: Tensor) -> Tensor:
        sizes.append(len(chunk))
        return chunk.flatten(1).sum(dim=1, keepdim=True)

    batch = torch.arange(count * 6).reshape(count, 2, 3)
    found = encode_filled(encode, batch, 4, 1)
    np.testing.assert_array_equal(found, batch.flatten(1).sum(dim=1, keepdim=True).float().numpy())
    assert sizes == [4] * -(-count // 4)
