from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rdm.errors import UsageError
from rdm.recipes import recipe_config
from rdm.training.engine.muon import Muon, _shares, orthogonalized


@pytest.mark.parametrize("shape", [(8, 8), (6, 30), (30, 6)])
def test_singular_values_are_brought_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_singular_vectors_stay() -> None:
    matrix = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ orthogonalized(matrix) @ v.T
    assert torch.allclose(rotated, torch.diag(rotated.diagonal()), atol=1e-3)


def test_vectors_step_as_adamw_steps() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    first = Muon([ours], lr=0.01, matrix_scale=1.0, betas=(0.9, 0.99), weight_decay=0.1)
    second = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(4)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_a_weight_decay_is_refused_that_would_do_nothing() -> None:
    with pytest.raises(UsageError, match="muon has no weight decay"):
        recipe_config("autoencoder-kl-f4").with_overrides(["weight_decay=0.3"])


def test_a_matrix_moves_by_its_learning_rate_whatever_the_gradients_size() -> None:
    moves = []
    for size in (1e-3, 1e3):
        weight = nn.Parameter(torch.zeros(4, 3, 2, 2))
        optimizer = Muon([weight], lr=0.1, matrix_scale=1.0)
        weight.grad = size * torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
        optimizer.step()
        moves.append(weight.detach().clone())
    assert torch.allclose(moves[0], moves[1], atol=1e-4)
    assert torch.linalg.svdvals(moves[0].flatten(1)).max() < 0.125


def test_a_restored_state_continues_to_the_same_bits() -> None:
    def run(optimizer: Muon, weight: nn.Parameter, seed: int) -> None:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    weight = nn.Parameter(torch.zeros(3, 4))
    optimizer = Muon([weight], lr=0.1, matrix_scale=0.5)
    run(optimizer, weight, 0)
    other = nn.Parameter(weight.detach().clone())
    restored = Muon([other], lr=0.1, matrix_scale=0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, weight, 1)
    run(restored, other, 1)
    assert torch.equal(weight, other)


def test_work_is_shared_out_by_its_size() -> None:
    shapes = [torch.Size(shape) for shape in ((64, 64), (8, 8), (64, 64), (16, 16))]
    assert _shares(shapes, 2) == [[0, 3], [2, 1]]


TWO_RANKS = """
import sys, torch
from rdm.training.engine.muon import orthogonalized, shared_out
torch.distributed.init_process_group(
    "gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2
)
generator = torch.Generator().manual_seed(0)
matrices = [torch.randn(shape, generator=generator) for shape in ((5, 7), (8, 3), (2, 2))]
found = shared_out(matrices)
torch.distributed.destroy_process_group()
pairs = zip(found, matrices, strict=True)
sys.exit(not all(torch.equal(one, orthogonalized(matrix)) for one, matrix in pairs))
"""


@pytest.mark.slow
def test_two_ranks_share_the_work_and_get_the_bits_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_RANKS, f"file://{tmp_path}/meet"]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
