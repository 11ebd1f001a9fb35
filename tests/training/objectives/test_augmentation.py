from __future__ import annotations

import torch

from rdm.training.objectives.augmentation import random_crops


def test_crops_are_cut_from_the_pictures_and_mirrored_half_the_time() -> None:
    image = torch.arange(16 * 16, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(200, 3, 16, 16)
    crops = random_crops(image, 8, torch.Generator().manual_seed(0))
    rising = (crops[:, 0, 0, 1] > crops[:, 0, 0, 0]).float()
    assert crops.shape == (200, 3, 8, 8)
    assert 0.35 < float(rising.mean()) < 0.65
    straight = crops[rising.bool()][:, 0, 0, 0]
    assert len(straight.unique()) > 40  # of 81 places
    assert torch.allclose(
        (crops[rising.bool()][:, 0, 1, 0] - straight) * 127.5, torch.tensor(16.0), atol=1e-3
    )
