from __future__ import annotations

import torch

from rdm.training.engine.ema import Ema


def test_the_average_follows_the_decay_with_warm_up() -> None:
    weight = torch.zeros(1)
    ema = Ema([weight], [0.9])
    weight.fill_(1.0)
    ema.update([weight])
    assert torch.allclose(ema.averages[0.9][0], torch.tensor([1 - 2 / 11]))
    ema.update([weight])
    assert torch.allclose(ema.averages[0.9][0], torch.tensor([1 - 2 / 11 * 3 / 12]))


def test_the_average_of_constant_weights_is_the_weights() -> None:
    weights = [torch.randn(4, 4), torch.randn(4)]
    ema = Ema(weights, [0.999, 0.5])
    for _ in range(10):
        ema.update(weights)
    assert all(
        torch.equal(mean, weight)
        for averages in ema.averages.values()
        for mean, weight in zip(averages, weights, strict=True)
    )


def test_a_greater_decay_follows_later() -> None:
    weight = torch.zeros(1)
    ema = Ema([weight], [0.1, 0.15])
    weight.fill_(1.0)
    for _ in range(5):
        ema.update([weight])
    assert ema.averages[0.1][0] > ema.averages[0.15][0]


def test_averages_of_16_bit_weights_are_kept_in_fp32() -> None:
    weight = torch.ones(1, dtype=torch.float16)
    ema = Ema([weight], [0.999])
    for _ in range(200):
        ema.update([weight])
    weight.fill_(1 + 2**-10)
    for _ in range(10000):
        ema.update([weight])
    assert ema.averages[0.999][0].dtype == torch.float32
    assert ema.averages[0.999][0].item() > 1 + 0.9 * 2**-10


def test_a_rank_that_owns_nothing_counts_its_updates() -> None:
    ema = Ema([], [0.9])
    ema.update([])
    assert ema.num_updates == 1
