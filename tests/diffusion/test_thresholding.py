from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from rdm.diffusion.thresholding import dynamic_threshold, static_threshold


def wide(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saturated(x: Tensor) -> float:
    return (x.abs() >= 1).float().mean().item()


def test_dynamic_threshold_saturates_half_a_percent_where_static_clipping_saturates_most() -> None:
    x0 = wide(1, 100_000)
    assert 8.4 <= torch.quantile(x0.abs(), 0.995).item() <= 8.5
    assert saturated(dynamic_threshold(x0)) == pytest.approx(0.0050, abs=1e-4)
    assert saturated(static_threshold(x0)) == pytest.approx(0.739, abs=5e-3)
    assert dynamic_threshold(x0).abs().max().item() == 1.0


def test_dynamic_threshold_divides_by_the_percentile() -> None:
    x0 = wide(1, 10_000)
    scale = torch.quantile(x0.abs(), 0.995)
    inside = x0.abs() < scale
    assert torch.allclose(dynamic_threshold(x0)[inside], x0[inside] / scale, rtol=1e-6)


def test_dynamic_threshold_leaves_a_sample_inside_the_limit_alone() -> None:
    x0 = wide(2, 3, 8, 8).clamp(-1, 1)
    assert torch.equal(dynamic_threshold(x0), x0)


def test_dynamic_threshold_clips_rare_outliers_statically() -> None:
    x0 = torch.zeros(1, 10_000)
    x0[0, 0] = 7.0
    assert dynamic_threshold(x0).max().item() == 1.0


def test_dynamic_threshold_treats_each_sample_on_its_own() -> None:
    x0 = wide(4, 3, 16, 16) * torch.tensor([0.1, 1.0, 5.0, 50.0]).view(4, 1, 1, 1)
    alone = torch.cat([dynamic_threshold(row[None]) for row in x0])
    assert torch.equal(dynamic_threshold(x0), alone)


@pytest.mark.slow
def test_dynamic_threshold_takes_samples_larger_than_one_quantile_call_takes_together() -> None:
    assert dynamic_threshold(torch.full((3, 2**23), 2.0)).unique().tolist() == [1.0]


@settings(max_examples=50)
@given(st.floats(0.1, 100), st.floats(0, 1), st.floats(0.5, 10), st.integers(0, 100))
def test_thresholds_keep_signs_and_the_limit(
    spread: float, percentile: float, limit: float, seed: int
) -> None:
    x0 = wide(2, 50, seed=seed) * spread
    for bounded in (dynamic_threshold(x0, percentile, limit), static_threshold(x0, limit)):
        assert bounded.abs().max().item() <= limit * (1 + 1e-6)
        assert bool((bounded * x0 >= 0).all())
