"""Muon: momentum with orthogonalized matrices (Jordan et al. 2024), AdamW for the rest.

For small convolutional autoencoders it reaches in a tenth of the time what AdamW reaches. A
convolution's weight [out, in, h, w] is the matrix [out, in h w].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# of the quintic iteration, chosen there for the fastest rise of small values
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Steps matrices along their orthogonalized momentum, and everything else by AdamW.

    Args:
        parameters: those that train. Tensors of two or more dimensions are matrices.
        lr: AdamW's learning rate; matrices move by `matrix_scale` times as much.
        matrix_scale: factor on the learning rate of matrices, whose steps have spectral norm 1.
        betas: of AdamW.
        weight_decay: of AdamW; matrices have none.
        dtype: what orthogonalization computes in; bfloat16 is enough (Jordan et al. 2024), and
            faster where the processor multiplies it.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        matrix_scale: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        everything = list(parameters)
        matrices = [parameter for parameter in everything if parameter.dim() >= 2]
        others = [parameter for parameter in everything if parameter.dim() < 2]
        groups = [
            {"params": matrices, "lr": lr, "lr_scale": matrix_scale, "matrices": True},
            {"params": others, "lr": lr, "lr_scale": 1.0, "matrices": False},
        ]
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step along the gradients; a closure, if given, computes them first."""
        # The closure is part of torch's interface; DeepSpeed calls `step` without one.
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            found = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["matrices"]:
                self._step_matrices(found, group["lr"])
                continue
            for parameter in found:
                self._step_adamw(parameter, group)
        return loss

    def _step_matrices(self, parameters: list[nn.Parameter], lr: float) -> None:
        directions = [self._direction(parameter) for parameter in parameters]
        for parameter, direction in zip(
            parameters, shared_out(directions, self.dtype), strict=True
        ):
            # A tall matrix has fewer singular values than rows, and each row would move less.
            gain = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
            parameter.add_(direction.view_as(parameter), alpha=-lr * gain)

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Return the momentum with Nesterov's look ahead, as a matrix."""
        gradient: Any = parameter.grad
        momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        # A mean and not a sum over the past: the scale is lost in the orthogonalization anyway.
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM).flatten(1)

    def _step_adamw(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["count"] = 0
            state["mean"], state["square"] = (
                torch.zeros_like(parameter),
                torch.zeros_like(parameter),
            )

        # Means over the past, corrected for their start at zero (Kingma and Ba 2015).
        state["count"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].lerp_(parameter.grad.square(), 1 - second)  # type: ignore[union-attr]
        mean = state["mean"] / (1 - first ** state["count"])
        root = (state["square"] / (1 - second ** state["count"])).sqrt_()

        # Decay acts on the weight itself, not through the moments (Loshchilov and Hutter 2019).
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(
            mean, root + group["eps"], value=-group["lr"]
        )


def shared_out(matrices: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return each matrix orthogonalized, the work shared out over the ranks of the job.

    Every rank has the same matrices and gets all results. They are those of a single process, bit
    for bit: a matrix is worked on by one rank, and its result is sent as it is.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks == 1:
        return [orthogonalized(matrix, dtype) for matrix in matrices]

    # Each rank works on its share, padded to one length for a single gather.
    shares = _shares([matrix.shape for matrix in matrices], ranks)
    own = [orthogonalized(matrices[place], dtype).flatten() for place in shares[dist.get_rank()]]
    longest = max(sum(matrices[place].numel() for place in share) for share in shares)
    padding = torch.zeros(longest - sum(len(part) for part in own), device=matrices[0].device)
    sent = torch.cat([*own, padding])
    received = [torch.empty_like(sent) for _ in range(ranks)]
    dist.all_gather(received, sent)

    # Take the ranks' flat results apart again.
    results: dict[int, Tensor] = {}
    for share, flat in zip(shares, received, strict=True):
        parts = flat.split(
            [*(sizes := [matrices[place].numel() for place in share]), longest - sum(sizes)]
        )
        results |= {
            place: part.view_as(matrices[place]) for place, part in zip(share, parts, strict=False)
        }
    return [results[place] for place in range(len(matrices))]


def _shares(shapes: Sequence[torch.Size], ranks: int) -> list[list[int]]:
    """Return each rank's matrices: the largest work first, to the rank that has least."""
    # About the multiplications of an iteration. Ties fall by place, so that all ranks compute the
    # same shares without a message.
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for place in sorted(range(len(shapes)), key=lambda place: (-work[place], place)):
        least = loads.index(min(loads))
        shares[least].append(place)
        loads[least] += work[place]
    return shares


def orthogonalized(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return nearly U V^T of U S V^T [N, M], float32: singular values are moved to 0.7..1.2.

    Five Newton-Schulz iterations X <- a X + (b A + c A A) X with A = X X^T, computed in `dtype`.
    """
    a, b, c = _COEFFICIENTS
    # The Frobenius norm bounds the largest singular value: far above 1 the iteration diverges.
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    # Wide, so that the Gram matrix is the smaller of the two possible ones.
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()
