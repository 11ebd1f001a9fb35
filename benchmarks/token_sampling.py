"""Drawing a RARM's tokens with keys and values that are kept, against a pass over all tokens so far
for each."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import paired_ratio
from rdm.context import Context
from rdm.diffusion.autoregressive import autoregressive_sample
from rdm.models.token_predictor import TokenPredictor, build_token_predictor
from rdm.recipes import recipe_config

BATCH, NEIGHBORS = 4, 4
ROUNDS = int(os.environ.get("RDM_BENCHMARK_ROUNDS", "3"))


def run() -> str:
    """Return the ratio in words."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    objective = recipe_config("rarm-tiny").objective
    assert objective.kind == "retrieval-autoregression"
    predictor = build_token_predictor(objective.network).eval()
    length = objective.network.length
    context = Context(tokens=torch.randn(BATCH, NEIGHBORS, objective.network.cross_attention_dim))

    def draw(begin: Callable[[Context], Callable[[Tensor | None], Tensor]]) -> Tensor:
        return autoregressive_sample(begin, context, length=length, seeds=range(BATCH))[0]

    ratio, kept, anew = paired_ratio(
        lambda: draw(predictor.begin), lambda: draw(anew_for(predictor)), ROUNDS
    )
    same = (draw(predictor.begin) == draw(anew_for(predictor))).float().mean().item()
    return (
        f"{ratio:.1f}x as fast: {kept:.2f} s instead of {anew:.2f} s for {BATCH} pictures of "
        f"{length} tokens; "
        f"{same:.1%} of the tokens are the same"
    )


def anew_for(predictor: TokenPredictor) -> Callable[[Context], Callable[[Tensor | None], Tensor]]:
    """Return a `begin` that remembers tokens only."""

    def begin(context: Context) -> Callable[[Tensor | None], Tensor]:
        drawn: list[Tensor] = []

        def advance(token: Tensor | None) -> Tensor:
            if token is not None:
                drawn.append(token)
            assert context.tokens is not None
            so_far = (
                torch.stack(drawn, dim=1)
                if drawn
                else torch.zeros(len(context.tokens), 0, dtype=torch.int64)
            )
            return predictor(so_far, context)[:, -1]

        return advance

    return begin
