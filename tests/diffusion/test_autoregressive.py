"""The autoregressive head on small exact predictors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rdm.context import Context
from rdm.diffusion.autoregressive import (
    Advance,
    DrawSettings,
    autoregressive_loss,
    autoregressive_sample,
    draw_token,
    kept_log_probs,
    token_losses,
)

Z, LENGTH = 5, 6
# A Markov chain: row z is the distribution after token z, row Z that of the first token.
TABLE = torch.randn(Z + 1, Z, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def predict(tokens: Tensor, context: Context) -> Tensor:
    start = torch.full((len(tokens), 1), Z)
    shift = (
        0 if context.tokens is None else context.tokens.sum((1, 2))[:, None, None] * torch.arange(Z)
    )
    return TABLE[torch.cat([start, tokens], dim=1)] + shift


def begin(context: Context) -> Advance:
    drawn: list[Tensor] = []
    batch = context.batch_size

    def advance(token: Tensor | None) -> Tensor:
        if token is not None:
            drawn.append(token)
        prefix = (
            torch.stack(drawn, dim=1) if drawn else torch.zeros(batch or 1, 0, dtype=torch.long)
        )
        return predict(prefix, context)[:, -1]

    return advance


def context(batch: int, value: float = 0.3) -> Context:
    return Context(tokens=torch.full((batch, 1, 1), value, dtype=torch.float64))


def test_the_teacher_forced_loss_is_what_the_tokens_were_drawn_with() -> None:
    tokens, log_probs = autoregressive_sample(begin, context(8), length=LENGTH, seeds=range(8))
    losses = token_losses(predict, tokens, context(8))
    assert torch.allclose(losses.double(), -log_probs, atol=1e-5)
    assert torch.allclose(
        autoregressive_loss(predict, tokens, context(8)).double(), -log_probs.mean(1), atol=1e-5
    )


def test_probabilities_of_all_sequences_sum_to_one() -> None:
    sequences = torch.cartesian_prod(*[torch.arange(Z)] * 3)
    losses = token_losses(predict, sequences, Context())
    assert math.isclose(float((-losses.double().sum(1)).exp().sum()), 1, abs_tol=1e-5)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    count = 20_000
    first = autoregressive_sample(begin, context(count), length=1, seeds=range(count))[0][:, 0]
    shares = torch.bincount(first, minlength=Z) / count
    expected = predict(torch.zeros(1, 0, dtype=torch.long), context(1))[0, 0].softmax(0)
    assert torch.allclose(shares.double(), expected, atol=4 * 0.5 / count**0.5)


def test_a_sample_depends_on_its_own_seed_only() -> None:
    together = autoregressive_sample(begin, context(3), length=LENGTH, seeds=[4, 5, 6])[0]
    alone = autoregressive_sample(begin, context(1), length=LENGTH, seeds=[5])[0]
    assert torch.equal(together[1:2], alone)


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional_distribution() -> None:
    plain = autoregressive_sample(begin, context(4), length=LENGTH, seeds=range(4))
    null = autoregressive_sample(begin, context(4, 0.0), length=LENGTH, seeds=range(4))
    one = autoregressive_sample(begin, context(4), length=LENGTH, seeds=range(4), guidance_scale=1)
    none = autoregressive_sample(begin, context(4), length=LENGTH, seeds=range(4), guidance_scale=0)
    assert torch.equal(one[1], plain[1])
    assert torch.equal(none[1], null[1])


def test_guidance_moves_the_logits_away_from_the_null_context() -> None:
    # The context adds 0.3 z to the logits: guidance of 3 adds three times as much.
    guided = autoregressive_sample(
        begin, context(4), length=LENGTH, seeds=range(4), guidance_scale=3
    )
    stronger = autoregressive_sample(begin, context(4, 0.9), length=LENGTH, seeds=range(4))
    assert torch.equal(guided[0], stronger[0])
    assert torch.allclose(guided[1], stronger[1])


@pytest.mark.parametrize("length", [1, 2])
def test_a_negative_context_is_led_away_from_whatever_its_length(length: int) -> None:
    # The context adds 0.3 z to the logits, the negative -0.3 z: 2 (0.3 + 0.3) - 0.3 = 0.9.
    tokens = context(4, -0.3).tokens
    assert tokens is not None
    negative = Context(tokens=tokens.repeat(1, length, 1) / length)
    led = autoregressive_sample(
        begin, context(4), length=LENGTH, seeds=range(4), guidance_scale=2, negative=negative
    )
    stronger = autoregressive_sample(begin, context(4, 0.9), length=LENGTH, seeds=range(4))
    assert torch.equal(led[0], stronger[0])


def test_a_context_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="2 samples, but there are 3 seeds"):
        autoregressive_sample(begin, context(2), length=1, seeds=range(3))


@pytest.mark.parametrize("temperature", [0, 1e-6])
def test_no_temperature_takes_the_likeliest_token(temperature: float) -> None:
    logits = torch.tensor([[0.0, 2, 1], [3, 2, 1]], dtype=torch.float64)
    token, log_prob = draw_token(
        logits, torch.tensor([0.999, 0.999]), DrawSettings(temperature=temperature)
    )
    assert token.tolist() == [1, 0]
    assert torch.allclose(log_prob, torch.zeros(2, dtype=torch.float64))


def test_truncation_keeps_the_likeliest_tokens_and_their_ratios() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.3, 0.2]], dtype=torch.float64)
    kept = [
        kept_log_probs(probabilities.log(), settings).exp()
        for settings in (
            DrawSettings(top_k=2),
            DrawSettings(top_p=0.7),
            DrawSettings(top_p=0.71),
            DrawSettings(top_p=0.1),
        )
    ]
    expected = [[0, 4 / 7, 3 / 7, 0], [0, 4 / 7, 3 / 7, 0], [0, 4 / 9, 3 / 9, 2 / 9], [0, 1, 0, 0]]
    assert torch.allclose(torch.cat(kept), torch.tensor(expected, dtype=torch.float64))


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=8),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 3),
    st.integers(1, 8),
    st.floats(0.01, 1),
)
def test_a_drawn_token_was_kept_and_the_kept_sum_to_one(
    logits: list[float], uniform: float, temperature: float, top_k: int, top_p: float
) -> None:
    settings = DrawSettings(temperature, top_k, top_p)
    row = torch.tensor([logits], dtype=torch.float64)
    token, log_prob = draw_token(row, torch.tensor([uniform], dtype=torch.float64), settings)
    kept = kept_log_probs(row, settings).exp()
    assert math.isclose(float(kept.sum()), 1, abs_tol=1e-9)
    assert int((kept > 0).sum()) <= top_k
    assert torch.isfinite(log_prob).all()
    assert kept[0, int(token)] > 0


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are needed"):
        DrawSettings(**wrong)
