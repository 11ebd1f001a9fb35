"""What RDM, LDM and RARM compute, against the same formulas written out once more, bit for bit.

The bits of a network depend on the processor, so no digest of them is kept: each test runs the
system and a plain composition of networks and formulas side by side. The order in which random
numbers are drawn is part of it, because a run that is resumed depends on it. The recorded losses
hold on every processor, to four digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_systems import SYSTEMS, System, open_exported
from torch import Tensor
from torch.nn import functional

from rdm.diffusion.samplers import seeded_noise
from rdm.diffusion.schedules import ddim_timesteps, rdm
from rdm.models.precision import autocast

STEPS, RATE = 6, 1e-3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, much slower where the processor is
    busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch_of(step: int) -> dict[str, Tensor]:
    """Return four samples: KL moments, tokens of a codebook, and six neighbors of each."""
    generator = torch.Generator().manual_seed(1000 + step)
    return {
        "moments": torch.randn(4, 8, 8, 8, generator=generator).half(),
        "indices": torch.randint(1024, (4, 8, 8), generator=generator, dtype=torch.int32),
        "neighbors": torch.randn(4, 6, 12, generator=generator).half(),
    }


def trained(
    parameters: Any, loss_of: Callable[[dict[str, Tensor], torch.Generator], Tensor]
) -> list[float]:
    """Return the losses of six steps of AdamW."""
    optimizer = torch.optim.AdamW(parameters, RATE)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)  # of a network's own dropout
        loss = loss_of(batch_of(step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def tokens_of(system: System, neighbors: Tensor, generator: torch.Generator) -> Tensor:
    """Return the context tokens of a step: the number of neighbors, which of them, and who sees
    none, in this order."""
    k = 4
    if system.k_choices:
        k = system.k_choices[int(torch.randint(len(system.k_choices), (), generator=generator))]
    if k < neighbors.shape[1]:
        order = torch.rand(neighbors.shape[:2], generator=generator).argsort(dim=1)[:, :k]
        neighbors = torch.stack([row[places] for row, places in zip(neighbors, order, strict=True)])
    tokens = neighbors.float() * 6.0
    if system.dropout:
        kept = torch.rand(len(tokens), generator=generator) >= system.dropout
        tokens = torch.where(kept[:, None, None], tokens, torch.zeros(()))
    return tokens


def plain_loss(
    system: System, network: Any, batch: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Return a step's loss by the formulas of the papers."""
    if system.kind == "rarm":
        context = network.context_projection(tokens_of(system, batch["neighbors"], generator))
        rows = batch["indices"].flatten(1).long()
        inputs = torch.cat([rows.new_full((4, 1), 1024), rows[:, :-1]], dim=1)
        logits = network.transformer(inputs, encoder_hidden_states=context, use_cache=False).logits[
            ..., :1024
        ]
        losses = functional.cross_entropy(logits.float().transpose(1, 2), rows, reduction="none")
        return losses.mean(1).mean()

    # A draw of the posterior, scaled; then the context; then time and noise.
    mean, logvar = batch["moments"].float().chunk(2, dim=1)
    z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
    z = (z - system.shift) * system.scale
    tokens = tokens_of(system, batch["neighbors"], generator)
    t = torch.randint(1000, (4,), generator=generator)
    noise = torch.randn(z.shape, generator=generator)

    alpha_bar = rdm().build().alphas_cumprod[t].float().view(4, 1, 1, 1)
    noisy = alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * noise
    target = alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * z
    vector = tokens.mean(1) if system.mean_vector else None
    found = network.unet(noisy, t, encoder_hidden_states=tokens, class_labels=vector).sample
    return (found - target).square().flatten(1).mean(dim=1).mean()


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_six_steps_have_the_losses_and_weights_of_the_plain_formulas(system: System) -> None:
    objective, network = system.objective(), system.network()
    network.load_state_dict(system.network_of(objective).state_dict())

    losses = trained(
        objective.parameters(), lambda batch, generator: objective(batch, generator)["loss"]
    )
    plain = trained(
        network.parameters(), lambda batch, generator: plain_loss(system, network, batch, generator)
    )

    assert losses == plain
    assert losses == pytest.approx(system.recorded_losses, rel=2e-4)
    ours = system.network_of(objective).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in network.state_dict().items())


@torch.no_grad()
def plain_latents(system: System, network: Any, tokens: Tensor, guidance: float) -> Tensor:
    """Return latents of seeds 1, 2, 3 by DDIM in five steps with eta = 1, away from no
    neighbors."""
    alpha_bars = rdm().build().alphas_cumprod.tolist()
    x = seeded_noise([1, 2, 3], (4, 8, 8))
    levels = [0, *ddim_timesteps(1000, 5).tolist()]
    both = tokens if guidance == 1 else torch.cat([tokens, torch.zeros_like(tokens)])
    copies = len(both) // 3
    vectors = both.mean(1) if system.mean_vector else None
    for index in range(1, len(levels)):
        t, t_prev = levels[-index], levels[-index - 1]
        times = torch.full((len(both),), t)
        v = network.unet(
            torch.cat([x] * copies), times, encoder_hidden_states=both, class_labels=vectors
        ).sample
        if copies == 2:
            conditional, unconditional = v.chunk(2)
            v = unconditional + guidance * (conditional - unconditional)
        v = v.float()  # the network computes in 16 bits where that is faster
        ab, ab_prev = alpha_bars[t], alpha_bars[t_prev]
        eps, x0 = (1 - ab) ** 0.5 * x + ab**0.5 * v, ab**0.5 * x - (1 - ab) ** 0.5 * v
        variance = (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)
        x = ab_prev**0.5 * x0 + (1 - ab_prev - variance) ** 0.5 * eps
        x = x + variance**0.5 * seeded_noise([1, 2, 3], (4, 8, 8), index)
    return x


@torch.no_grad()
def plain_tokens(network: Any, tokens: Tensor, guidance: float) -> Tensor:
    """Return the tokens [3, 64] of seeds 1, 2, 3, each drawn from its own distribution, whole
    prefix after prefix."""
    draws = torch.stack(
        [
            torch.rand(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in (1, 2, 3)
        ]
    )
    projected = network.context_projection(torch.cat([tokens, torch.zeros_like(tokens)]))
    past, last, drawn = None, torch.full((6,), 1024), []
    for place in range(64):
        result = network.transformer(
            last[:, None], encoder_hidden_states=projected, past_key_values=past
        )
        past, logits = result.past_key_values, result.logits[:, -1, :1024]
        conditional, unconditional = logits.chunk(2)
        mixed = (unconditional + guidance * (conditional - unconditional)).double()
        ordered, order = (mixed - mixed.amax(1, keepdim=True)).sort(
            dim=1, descending=True, stable=True
        )
        log_probs = torch.full_like(mixed, -torch.inf).scatter(1, order, ordered).log_softmax(1)
        ends = log_probs.exp().cumsum(1)
        token = torch.searchsorted(ends, (draws[:, place] * ends[:, -1])[:, None], right=True)[:, 0]
        drawn.append(token)
        last = torch.cat([token, token])
    return torch.stack(drawn, dim=1)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_samples_have_the_bits_of_the_plain_formulas(system: System, tmp_path: Path) -> None:
    objective = system.objective()
    network = system.network_of(objective).eval()
    objective.export(tmp_path, dict(objective.named_parameters()))
    vectors = torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(5)).half()
    if system.dropout == 1:
        vectors = torch.zeros(3, 1, 12).half()

    pictures, first_stage = open_exported(system, tmp_path, vectors, guidance_scale=2.0)

    tokens = vectors.float() * 6.0
    if system.kind == "rarm":
        with autocast(torch.device("cpu")):
            drawn = plain_tokens(network, tokens, 2.0)
        plain = first_stage.decode_indices(drawn.reshape(3, 8, 8))
    else:
        with autocast(torch.device("cpu")):
            latents = plain_latents(system, network, tokens, 1.0 if system.dropout == 1 else 2.0)
        plain = first_stage.decode(latents)
    assert torch.equal(pictures, plain)
