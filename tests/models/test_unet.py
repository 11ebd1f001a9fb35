from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_denoiser import SMALL_DENOISER

from rdm.context import Context, Part, Port
from rdm.errors import ModelError
from rdm.models.unet import (
    Denoiser,
    DenoiserConfig,
    build_denoiser,
    load_denoiser,
    meta_parameters,
    rdm_imagenet_denoiser,
)


def _config() -> DenoiserConfig:
    return SMALL_DENOISER.model_copy(update={"attention_levels": (True, True)})


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(_config()).eval()


def _predict(denoiser: Denoiser, tokens: torch.Tensor) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return denoiser(x, torch.tensor([10, 500]), Context(tokens=tokens))


def _tokens(count: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(2, count, 12, generator=torch.Generator().manual_seed(seed))


def test_the_imagenet_network_has_the_official_number_of_parameters() -> None:
    assert meta_parameters(rdm_imagenet_denoiser()) == 400_920_579


def test_permuting_the_neighbors_changes_nothing(denoiser: Denoiser) -> None:
    tokens = _tokens(4)
    assert torch.allclose(
        _predict(denoiser, tokens), _predict(denoiser, tokens[:, [2, 0, 3, 1]]), atol=1e-6
    )


def test_duplicating_every_neighbor_changes_nothing(denoiser: Denoiser) -> None:
    tokens = _tokens(4)
    assert torch.allclose(
        _predict(denoiser, tokens), _predict(denoiser, tokens.repeat(1, 2, 1)), atol=1e-6
    )


def test_other_neighbors_change_the_prediction(denoiser: Denoiser) -> None:
    assert (
        _predict(denoiser, _tokens(4)) - _predict(denoiser, _tokens(4, seed=3) * 5)
    ).abs().max() > 1e-3


def test_the_null_context_does_not_depend_on_the_number_of_neighbors(denoiser: Denoiser) -> None:
    one, many = (
        _predict(denoiser, torch.zeros(2, 1, 12)),
        _predict(denoiser, torch.zeros(2, 20, 12)),
    )
    assert torch.allclose(one, many, atol=1e-6)


def test_keys_and_values_have_no_bias(denoiser: Denoiser) -> None:
    names = [
        name for name, _ in denoiser.named_parameters() if ".to_k." in name or ".to_v." in name
    ]
    assert names
    assert not [name for name in names if name.endswith("bias")]


@pytest.mark.parametrize("count", [1, 2, 8, 20])
def test_any_number_of_neighbors_runs(denoiser: Denoiser, count: int) -> None:
    assert _predict(denoiser, _tokens(count)).shape == (2, 4, 8, 8)


def test_a_context_without_tokens_is_refused_and_not_read_as_self_attention(
    denoiser: Denoiser,
) -> None:
    with pytest.raises(ValueError, match="context tokens"):
        denoiser(torch.zeros(1, 4, 8, 8), torch.tensor([1]), Context())


@pytest.mark.parametrize("port", ["vector", "channels", "grounding"])
def test_a_port_that_the_denoiser_does_not_read_is_refused_by_name(
    denoiser: Denoiser, port: Port
) -> None:
    shapes = {"vector": (1, 3), "channels": (1, 3, 8, 8), "grounding": (1, 2, 3)}
    context = Context(**{"tokens": torch.zeros(1, 1, 12), port: torch.zeros(shapes[port])})
    with pytest.raises(ValueError, match=f"reads tokens alone, but the context sets {port}"):
        denoiser(torch.zeros(1, 4, 8, 8), torch.tensor([1]), context)


def test_a_saved_denoiser_opens_with_the_same_bits(denoiser: Denoiser, tmp_path: Path) -> None:
    denoiser.unet.save_pretrained(str(tmp_path), safe_serialization=True)
    assert torch.equal(
        _predict(load_denoiser(tmp_path), _tokens(4)), _predict(denoiser, _tokens(4))
    )


def test_an_empty_folder_is_no_denoiser(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no denoiser"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(
    "change", [{"attention_levels": (True,)}, {"head_dim": 7}, {"norm_num_groups": 5}]
)
def test_configurations_that_cannot_be_built_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attention levels|multiple"):
        DenoiserConfig.model_validate({**_config().model_dump(), **change})


def test_a_vector_is_read_where_the_network_has_a_vector_dim() -> None:
    tested = build_denoiser(
        _config().model_copy(update={"vector_dim": 12, "time_scale_shift": True})
    ).eval()
    x_t, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([10, 20]), torch.randn(2, 3, 12)
    with torch.no_grad():
        one, other = (
            tested(x_t, t, Context(tokens=tokens, vector=vector * torch.ones(2, 12)))
            for vector in (0, 5)
        )
    assert not torch.allclose(one, other)
    with pytest.raises(ValueError, match="needs the context's vector"):
        tested(x_t, t, Context(tokens=tokens))


def test_tokens_that_are_padding_count_as_if_they_were_not_there(denoiser: Denoiser) -> None:
    tokens = _tokens(5)
    present = torch.tensor([[True, True, True, False, False]] * 2)
    x, t = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([10, 500]),
    )
    with torch.no_grad():
        masked = denoiser(x, t, Context(Part("text", "tokens", tokens, present)))
    assert torch.allclose(masked, _predict(denoiser, tokens[:, :3]), atol=1e-5)


def test_a_context_of_padding_alone_is_finite(denoiser: Denoiser) -> None:
    part = Part("text", "tokens", _tokens(5), torch.zeros(2, 5, dtype=torch.bool))
    with torch.no_grad():
        found = denoiser(torch.zeros(2, 4, 8, 8), torch.tensor([10, 500]), Context(part))
    assert found.isfinite().all()


def _weighted(denoiser: Denoiser, tokens: torch.Tensor, weights: list[float]) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    factors = torch.tensor(weights).expand(2, -1)
    part = Part("neighbors", "tokens", tokens, weights=factors)
    with torch.no_grad():
        return denoiser(x, torch.tensor([10, 500]), Context(part))


@pytest.mark.parametrize(
    ("weights", "places"),
    [
        ([2, 1, 1], [0, 0, 1, 2]),
        ([0, 1, 1], [1, 2]),
        ([1, 0, 3], [0, 2, 2, 2]),
        ([0.5, 0.5, 0.5], [0, 1, 2]),
    ],
)
def test_a_weight_counts_a_token_so_many_times(
    denoiser: Denoiser, weights: list[float], places: list[int]
) -> None:
    tokens = _tokens(3)
    expected = _predict(denoiser, tokens[:, places])
    assert torch.allclose(_weighted(denoiser, tokens, weights), expected, atol=2e-4)
    # The tolerance is far under what a weight changes.
    assert not torch.allclose(_weighted(denoiser, tokens, [1, 4, 0.1]), expected, atol=2e-3)


def test_weights_hold_where_the_network_computes_in_16_bits(denoiser: Denoiser) -> None:
    tokens = _tokens(3)
    with torch.autocast("cpu", torch.bfloat16):
        weighted = _weighted(denoiser, tokens, [2, 1, 0])
        twice = _predict(denoiser, tokens[:, [0, 0, 1]])
    once = _predict(denoiser, tokens[:, [0, 1]])
    # As near as 16 bits are to 32.
    assert (weighted - twice).abs().max() < 0.03
    assert (weighted - twice).abs().mean() < (once - twice).abs().mean() / 4


def test_weights_are_refused_where_samples_have_16_bits(denoiser: Denoiser) -> None:
    part = Part("neighbors", "tokens", _tokens(2).bfloat16(), weights=torch.ones(2, 2))
    with pytest.raises(ValueError, match="weights of tokens need float32 samples"):
        denoiser(torch.zeros(2, 4, 8, 8).bfloat16(), torch.tensor([1, 1]), Context(part))
