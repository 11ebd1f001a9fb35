"""The autoregressive head: tokens one after another, each given those before it and the context.

RARM (Blattmann et al. 2022, eq. 4): L = -E sum_i log p(z_i | z_<i, {phi(y)}), over the codebook
rows of a VQ autoencoder in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rdm.context import Context
from rdm.diffusion.guidance import combine, same_shapes

Predict = Callable[[Tensor, Context], Tensor]
"""(tokens int64 [B, n], context) -> logits [B, n + 1, Z]; entry i: of token i given tokens < i."""

Advance = Callable[[Tensor | None], Tensor]
"""(last tokens int64 [B]; None at the start) -> next logits [B, Z]; it remembers earlier tokens."""

Begin = Callable[[Context], Advance]


@dataclass(frozen=True)
class DrawSettings:
    """Settings of the draw of a token from its logits.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only; None: from all.
        top_p: draw from the fewest likeliest tokens that together have this probability (Holtzman
            et al. 2020); in (0, 1], 1: from all. Applied after `top_k`.

    Raises:
        ValueError: a number is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        has_top_k = self.top_k is None or self.top_k >= 1
        if self.temperature < 0 or not has_top_k or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature >= 0, top_k >= 1 and 0 < top_p <= 1 are needed, not {self}"
            )


def token_losses(predict: Predict, tokens: Tensor, context: Context) -> Tensor:
    """Return -log p(z_i | z_<i, context) of tokens int64 [B, N], in nats, float32 [B, N]."""
    # The last token is predicted and predicts nothing. In float32: a softmax over thousands of rows
    # loses its tail in 16 bits.
    logits = predict(tokens[:, :-1], context).float()
    return functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def autoregressive_loss(predict: Predict, tokens: Tensor, context: Context) -> Tensor:
    """Return the mean loss per token of each sample, nats, float32 [B]."""
    return token_losses(predict, tokens, context).mean(1)


@torch.no_grad()
def autoregressive_sample(
    begin: Begin,
    context: Context,
    *,
    length: int,
    seeds: Sequence[int],
    guidance_scale: float = 1.0,
    negative: Context | None = None,
    settings: DrawSettings | None = None,
    on_token: Callable[[Tensor], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw tokens int64 [B, length]; return them and their log-probabilities, float64 [B, length].

    Args:
        begin: the network.
        context: conditioning of len(seeds) samples; its null is what guidance leads away from.
        length: tokens per sample.
        seeds: one per sample; a sample depends on its own seed only.
        guidance_scale: s of l_u + s (l_c - l_u) on logits; 1 is no guidance, 0 unconditional.
        negative: a context to be led away from; None: the null context.
        settings: how a token is drawn; from the whole distribution where it is None.
        on_token: is called with the tokens so far, int64 [B, n], after each; an exception that it
            raises ends the drawing.

    Raises:
        ValueError: the context's batch is not len(seeds).
    """
    if context.batch_size not in (None, len(seeds)):
        raise ValueError(
            f"the context holds {context.batch_size} samples, but there are {len(seeds)} seeds"
        )

    chosen = settings or DrawSettings()
    advance = _guided(begin, context, guidance_scale, negative)
    # All numbers of a sample come from its own seed, before the first token.
    draws = torch.stack([_uniform(seed, length) for seed in seeds])

    tokens: list[Tensor] = []
    log_probs: list[Tensor] = []
    # In float64, so that rounding hardly ever decides which token a number falls on.
    for position in range(length):
        logits = advance(tokens[-1] if tokens else None).double()
        token, log_prob = draw_token(logits, draws[:, position].to(logits.device), chosen)
        tokens.append(token)
        log_probs.append(log_prob)
        if on_token is not None:
            on_token(torch.stack(tokens, dim=1))

    return torch.stack(tokens, dim=1), torch.stack(log_probs, dim=1)


def draw_token(logits: Tensor, uniform: Tensor, settings: DrawSettings) -> tuple[Tensor, Tensor]:
    """Draw a token int64 [B] from each row of logits [B, Z]; return it and its log-probability [B].

    The draw inverts the distribution.

    Args:
        logits: unnormalized log-probabilities.
        uniform: numbers in [0, 1), [B].
        settings: temperature and truncation.
    """
    log_probs = kept_log_probs(logits, settings)
    ends = log_probs.exp().cumsum(1)

    # Scaled by the last end, because rounding may leave it a little under 1; a token of no width is
    # never drawn.
    token = torch.searchsorted(ends, (uniform * ends[:, -1])[:, None], right=True).clamp(
        max=logits.shape[1] - 1
    )
    return token[:, 0], log_probs.gather(1, token)[:, 0]


def kept_log_probs(logits: Tensor, settings: DrawSettings) -> Tensor:
    """Return the log-probabilities [B, Z] of the draw; -inf for tokens that are cut off."""
    if settings.temperature == 0:
        best = logits.argmax(1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(1, best, 0.0)

    # Less the greatest, which changes no probability: a quotient by the smallest temperatures would
    # be infinite.
    scaled = (logits - logits.amax(1, keepdim=True)) / settings.temperature

    # From the likeliest on: first top_k, then top_p of what is left.
    ordered, order = scaled.sort(dim=1, descending=True, stable=True)
    if settings.top_k is not None:
        ordered[:, settings.top_k :] = -torch.inf
    probabilities = ordered.softmax(1)
    # A token stays while those before it have less than top_p; so the first always does.
    ordered[probabilities.cumsum(1) - probabilities >= settings.top_p] = -torch.inf
    return torch.full_like(scaled, -torch.inf).scatter(1, order, ordered).log_softmax(1)


def _guided(
    begin: Begin, context: Context, guidance_scale: float, negative: Context | None
) -> Advance:
    """Return a predictor with classifier-free guidance: both branches as one batch, or one after
    the other where contexts differ in shape."""
    if guidance_scale == 1:
        return begin(context)
    other = context.null() if negative is None else negative
    if guidance_scale == 0:
        return begin(other)
    if not same_shapes(context, other):
        one, away = begin(context), begin(other)
        return lambda token: combine(one(token), away(token), guidance_scale)
    # Both branches must see the token that was drawn, or their caches would describe two pictures.
    both = begin(context.concatenated(other))

    def advance(token: Tensor | None) -> Tensor:
        conditional, unconditional = both(
            None if token is None else torch.cat([token, token])
        ).chunk(2)
        return combine(conditional, unconditional, guidance_scale)

    return advance


def _uniform(seed: int, length: int) -> Tensor:
    # On the CPU, so that a seed gives the same numbers whatever device computes the logits.
    return torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
