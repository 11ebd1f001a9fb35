from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rdm.models.first_stage.codebook import (
    fit_codebook,
    perplexity,
    quantize,
    revival_loss,
    row_counts,
    used_share,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(count: int = 2, dim: int = 3, side: int = 4) -> Tensor:
    return torch.randn(count, dim, side, side, generator=seeded(1))


def codebook(size: int = 8, dim: int = 3) -> Tensor:
    return torch.randn(size, dim, generator=seeded(2))


def test_gradients_pass_to_the_encoder_unchanged() -> None:
    z, weights = outputs().requires_grad_(), outputs(count=2)
    (quantize(z, codebook()).latents * weights).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weights)


def test_quantized_latents_are_codebook_rows_and_stay_where_they_are() -> None:
    once = quantize(outputs(), codebook())
    rows = codebook()[once.indices].permute(0, 3, 1, 2)
    assert torch.allclose(once.latents, rows, atol=1e-6)
    assert torch.equal(quantize(rows, codebook()).latents, rows)


def test_losses_are_the_mean_squared_distance_of_vectors() -> None:
    z, rows = torch.zeros(1, 2, 1, 2), torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    found = quantize(z, rows)
    assert found.codebook_loss.item() == found.commitment_loss.item() == 25


def test_the_codebook_loss_moves_rows_and_the_commitment_the_encoder() -> None:
    z, rows = outputs().requires_grad_(), codebook().requires_grad_()
    found = quantize(z, rows)
    by_encoder = torch.autograd.grad(found.codebook_loss, z, allow_unused=True, retain_graph=True)
    by_rows = torch.autograd.grad(found.commitment_loss, rows, allow_unused=True, retain_graph=True)
    assert (by_encoder[0], by_rows[0]) == (None, None)
    (moved,) = torch.autograd.grad(found.commitment_loss, z)
    assert torch.allclose(
        moved, 2 * (z - codebook()[found.indices].permute(0, 3, 1, 2)).detach() / 32
    )


@pytest.mark.parametrize(
    ("counts", "expected", "share"), [([5, 5, 5, 5], 4, 1), ([0, 9, 0, 0], 1, 0.25)]
)
def test_perplexity_and_share_of_known_counts(
    counts: list[int], expected: float, share: float
) -> None:
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)
    assert used_share(torch.tensor(counts)).item() == share


def test_rows_that_are_in_use_are_not_pulled() -> None:
    z = outputs()
    rows = z.permute(0, 2, 3, 1).flatten(0, 2)[:8].clone().requires_grad_()
    loss = revival_loss(quantize(z, rows), z, rows, seeded())
    loss.backward()
    assert loss.item() == 0
    assert rows.grad is not None
    assert not rows.grad.any()


def test_only_unused_rows_are_pulled_and_the_encoder_is_not() -> None:
    z = outputs().requires_grad_()
    rows = torch.cat([torch.zeros(1, 3), torch.full((2, 3), 50.0)]).requires_grad_()
    revival_loss(quantize(z, rows), z, rows, seeded()).backward()
    assert z.grad is None
    assert rows.grad is not None
    assert rows.grad.abs().sum(1).gt(0).tolist() == [False, True, True]


def test_an_unused_row_is_pulled_to_an_output() -> None:
    z = torch.tensor([1.0, 1.0, 7.0]).view(1, 1, 1, 3)
    rows = torch.tensor([[1.0], [90.0]])
    # Only the output 7 has a distance from the codebook: it alone is drawn. The mean is over both
    # rows.
    assert revival_loss(quantize(z, rows), z, rows, seeded()).item() == pytest.approx(
        (90 - 7) ** 2 / 2
    )


def test_a_pull_is_a_function_of_its_seed() -> None:
    z, rows = outputs(), torch.cat([torch.zeros(1, 3), torch.full((6, 3), 50.0)])
    first, again, other = (
        revival_loss(quantize(z, rows), z, rows, seeded(seed)).item() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_left_to_the_loss(bad: float) -> None:
    z, rows = outputs(), torch.cat([torch.zeros(1, 3), torch.full((2, 3), 50.0)])
    z[0, 0, 0, 0] = bad
    found = quantize(z, rows)
    revival_loss(found, z, rows, seeded())
    assert not found.codebook_loss.isfinite()


def usage_after(steps: int, revival_weight: float) -> float:
    """Return the used share of a codebook whose rows all began at one far place, for outputs that
    do not change."""
    z = torch.randn(4, 2, 16, 16, generator=seeded(3))
    rows = torch.full((32, 2), 6.0).requires_grad_()
    optimizer = torch.optim.Adam([rows], 0.05, betas=(0.9, 0.9))
    for step in range(steps):
        found = quantize(z, rows)
        loss = found.codebook_loss + revival_weight * revival_loss(found, z, rows, seeded(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return used_share(row_counts(quantize(z, rows.detach()).indices, 32)).item()


def test_a_collapsed_codebook_comes_back_into_use() -> None:
    assert usage_after(300, revival_weight=0.0) == 1 / 32
    assert usage_after(300, revival_weight=0.01) > 0.9


def test_a_fitted_codebook_finds_separate_clusters() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = (centers[:, None] + torch.tensor([[-1.0, 0.0], [1.0, 0.0]])).flatten(0, 1)
    found = fit_codebook(vectors, 3, seeded(5))
    assert sorted(found.tolist()) == sorted(centers.tolist())


def test_fewer_vectors_than_rows_cannot_fill_a_codebook() -> None:
    with pytest.raises(ValueError, match="4 vectors cannot fill a codebook of 8 rows"):
        fit_codebook(torch.randn(4, 2), 8, seeded())
