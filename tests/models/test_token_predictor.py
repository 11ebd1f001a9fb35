from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rdm.context import Context, Part
from rdm.diffusion.autoregressive import Advance, autoregressive_sample, token_losses
from rdm.errors import ModelError
from rdm.models.token_predictor import (
    TokenPredictor,
    TokenPredictorConfig,
    build_token_predictor,
    load_token_predictor,
    rarm_imagenet_predictor,
    save_token_predictor,
)
from rdm.models.unet import num_parameters

CONFIG = TokenPredictorConfig(
    codebook_size=11, side=3, num_layers=2, num_heads=2, width=16, cross_attention_dim=6
)


@pytest.fixture(scope="module")
def predictor() -> TokenPredictor:
    torch.manual_seed(0)
    network = build_token_predictor(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return network.eval()


def tokens(batch: int = 2, length: int = 8) -> torch.Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(1))


def neighbors(count: int = 4, batch: int = 2) -> Context:
    return Context(tokens=torch.randn(batch, count, 6, generator=torch.Generator().manual_seed(2)))


@torch.no_grad()
def test_a_token_has_no_influence_on_itself_and_those_before(predictor: TokenPredictor) -> None:
    changed = tokens()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = predictor(tokens(), neighbors()), predictor(changed, neighbors())
    assert before.shape == (2, 9, 11)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax((1, 2)).min() > 1e-3


@torch.no_grad()
def test_one_by_one_gives_the_logits_of_one_pass(predictor: TokenPredictor) -> None:
    given = tokens()
    advance = predictor.begin(neighbors())
    steps = [advance(None)] + [advance(given[:, i]) for i in range(given.shape[1])]
    assert torch.allclose(torch.stack(steps, dim=1), predictor(given, neighbors()), atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_kept_keys_and_values_draw_the_tokens_of_whole_passes(
    predictor: TokenPredictor, guidance_scale: float
) -> None:
    def begin(context: Context) -> Advance:
        drawn: list[torch.Tensor] = []

        def advance(token: torch.Tensor | None) -> torch.Tensor:
            drawn.extend([] if token is None else [token])
            assert context.tokens is not None
            so_far = (
                torch.stack(drawn, dim=1)
                if drawn
                else torch.zeros(len(context.tokens), 0, dtype=torch.int64)
            )
            return predictor(so_far, context)[:, -1]

        return advance

    options = {"length": 9, "seeds": range(8), "guidance_scale": guidance_scale}
    kept = autoregressive_sample(predictor.begin, neighbors(batch=8), **options)
    anew = autoregressive_sample(begin, neighbors(batch=8), **options)
    assert torch.equal(kept[0], anew[0])
    assert torch.allclose(kept[1], anew[1], atol=1e-4)


@torch.no_grad()
def test_neighbors_are_a_set_and_matter(predictor: TokenPredictor) -> None:
    context = neighbors().tokens
    assert context is not None
    plain = predictor(tokens(), Context(tokens=context))
    assert torch.allclose(
        plain, predictor(tokens(), Context(tokens=context[:, [2, 0, 3, 1]])), atol=1e-5
    )
    assert torch.allclose(
        plain, predictor(tokens(), Context(tokens=context.repeat(1, 3, 1))), atol=1e-5
    )
    assert (plain - predictor(tokens(), Context(tokens=context * 5))).abs().max() > 1e-3


@torch.no_grad()
def test_the_null_context_does_not_depend_on_the_number_of_neighbors(
    predictor: TokenPredictor,
) -> None:
    one, many = (predictor(tokens(), neighbors(count).null()) for count in (1, 7))
    assert torch.allclose(one, many, atol=1e-5)


def test_a_context_without_tokens_is_refused(predictor: TokenPredictor) -> None:
    with pytest.raises(ValueError, match="context tokens"):
        predictor(tokens(), Context())


@pytest.mark.parametrize("begins", [False, True], ids=["forward", "begin"])
def test_a_port_that_the_predictor_does_not_read_is_refused_by_name(
    predictor: TokenPredictor, begins: bool
) -> None:
    known = neighbors()
    context = Context(tokens=known.tokens, vector=torch.zeros(known.batch_size or 0, 3))
    with pytest.raises(ValueError, match="reads tokens alone, but the context sets vector"):
        predictor.begin(context) if begins else predictor(tokens(), context)


@torch.no_grad()
def test_sampled_log_probabilities_are_the_teacher_forced_losses(predictor: TokenPredictor) -> None:
    drawn, log_probs = autoregressive_sample(predictor.begin, neighbors(), length=9, seeds=[1, 2])
    assert torch.allclose(
        token_losses(predictor, drawn, neighbors()).double(), -log_probs, atol=1e-4
    )


def test_a_saved_predictor_opens_with_the_same_bits(
    predictor: TokenPredictor, tmp_path: Path
) -> None:
    save_token_predictor(predictor, tmp_path)
    with torch.no_grad():
        opened = load_token_predictor(tmp_path, CONFIG)(tokens(), neighbors())
        assert torch.equal(opened, predictor(tokens(), neighbors()))


def test_an_empty_folder_is_no_predictor(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be opened"):
        load_token_predictor(tmp_path, CONFIG)


def test_the_official_network_has_other_layers_and_more_parameters() -> None:
    width, inner, tokens = 768, 3072, 16384
    attention = 4 * width * width + width  # no biases but that of the output
    cross_attention = 2 * width * width + 2 * 512 * width + width
    gated = width * 2 * inner + 2 * inner + inner * width + width
    layer = attention + cross_attention + gated + 3 * 2 * width
    head = tokens * width + tokens
    official = tokens * width + 256 * width + 18 * layer + 2 * width + head
    assert official == 230_874_112
    with torch.device("meta"):
        ours = num_parameters(build_token_predictor(rarm_imagenet_predictor()))
    gates, wider = 18 * (width * inner + inner), 7_554_048 + width
    assert official - ours == gates + head - wider == 47_567_104
    assert ours == 183_307_008


def test_the_official_sizes_in_gpt2s_layers() -> None:
    with torch.device("meta"):
        network = build_token_predictor(rarm_imagenet_predictor())
    # Embeddings 16385 x 768 and 256 x 768, the projection 512 x 768, 18 layers, and the last norm.
    layer = 3 * 2 * 768 + 2 * 4 * (768 * 768 + 768) + 2 * 4 * 768 * 768 + 5 * 768
    assert num_parameters(network) == (16385 + 256 + 512) * 768 + 18 * layer + 2 * 768


@pytest.mark.parametrize(("weights", "places"), [([2, 1, 1], [0, 0, 1, 2]), ([0, 1, 1], [1, 2])])
def test_a_weight_counts_a_neighbor_so_many_times(
    predictor: TokenPredictor, weights: list[float], places: list[int]
) -> None:
    values = neighbors(3).tokens
    assert values is not None
    factors = torch.tensor(weights).float().expand(2, -1)
    weighted = Context(Part("neighbors", "tokens", values, weights=factors))
    expected = predictor(tokens(), Context(tokens=values[:, places]))
    assert torch.allclose(predictor(tokens(), weighted), expected, atol=1e-5)
    first = predictor.begin(weighted)(None)
    assert torch.allclose(first, expected[:, 0], atol=1e-5)
