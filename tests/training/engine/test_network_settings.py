"""Settings that act on networks change how a pass is computed, not what comes out of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_denoiser import SMALL_DENOISER
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rdm.context import Context
from rdm.errors import TrainingError
from rdm.generators.heads import AutoregressiveConfig
from rdm.generators.spaces import TokensConfig
from rdm.models.token_predictor import TokenPredictorConfig
from rdm.training.config import TrainConfig
from rdm.training.engine.network_settings import networks_of, prepare_networks
from rdm.training.objectives.generative import GenerativeConfig
from rdm.training.planning.cost import training_case

DENOISER = GenerativeConfig(network=SMALL_DENOISER)
PREDICTOR = GenerativeConfig(
    network=TokenPredictorConfig(
        codebook_size=32,
        side=3,
        num_layers=2,
        num_heads=2,
        width=16,
        cross_attention_dim=12,
        dropout=0.1,
    ),
    space=TokensConfig(),
    head=AutoregressiveConfig(),
)
OBJECTIVES = {"denoiser": DENOISER, "predictor": PREDICTOR}


def config_with(objective: GenerativeConfig, settings: dict[str, bool]) -> TrainConfig:
    fixed = {
        "recipe": "heads",
        "objective": objective,
        "max_steps": 1,
        "batch_size": 2,
        "learning_rate": 1e-3,
    }
    return TrainConfig.model_validate({**fixed, **settings})


def inputs(kind: str) -> tuple[Tensor | Context, ...]:
    draw = torch.Generator().manual_seed(2)
    context = Context(tokens=torch.randn(2, 4, 12, generator=draw))
    if kind == "denoiser":
        return torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([10, 700]), context
    return torch.randint(32, (2, 8), generator=draw), context


def prepared(kind: str, **settings: bool) -> tuple[nn.Module, Tensor]:
    """Return a network after a backward pass under the settings, and its output."""
    torch.manual_seed(0)
    case = training_case(OBJECTIVES[kind], 2)
    assert case is not None
    network, _ = case
    prepare_networks(networks_of(network), config_with(OBJECTIVES[kind], settings))
    torch.manual_seed(1)  # of the dropout, which a block that is computed again must draw again
    output = network(*inputs(kind))
    output.square().mean().backward()
    return network, output


def same(
    first: tuple[nn.Module, Tensor], second: tuple[nn.Module, Tensor], tolerance: float
) -> None:
    assert torch.allclose(first[1], second[1], atol=tolerance)
    gradients = dict(first[0].named_parameters())
    assert gradients
    for name, parameter in second[0].named_parameters():
        expected = gradients[name].grad
        assert (parameter.grad is None) == (expected is None)
        assert expected is None or torch.allclose(parameter.grad, expected, atol=tolerance), name  # pyright: ignore


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_checkpointed_activations_give_the_same_gradients(kind: str) -> None:
    same(prepared(kind), prepared(kind, activation_checkpointing=True), 1e-6)


class ObservedConvolutions(TorchFunctionMode):
    """Notes whether the input of each convolution has its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.laid_out: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.conv2d:
            self.laid_out.append(args[0].is_contiguous(memory_format=torch.channels_last))
        return func(*args, **kwargs or {})


def test_channels_last_reaches_every_convolution_and_leaves_parameters_contiguous() -> None:
    """DeepSpeed sends parameters as bytes, which it cannot with others."""
    with ObservedConvolutions() as observed:
        network, _ = prepared("denoiser", channels_last=True)
    assert observed.laid_out
    assert all(observed.laid_out)
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_channels_last_gives_the_same_gradients() -> None:
    same(prepared("denoiser"), prepared("denoiser", channels_last=True), 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
# torch's compiler hides this one itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_compiled_network_gives_the_same_gradients(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Inductor draws dropout from a generator of its own.
    monkeypatch.setitem(OBJECTIVES, "predictor", without_dropout(PREDICTOR))
    same(prepared(kind), prepared(kind, compile=True), 1e-5)


def without_dropout(objective: GenerativeConfig) -> GenerativeConfig:
    return objective.model_copy(
        update={"network": objective.network.model_copy(update={"dropout": 0.0})}
    )


def test_channels_last_is_refused_where_there_are_no_convolutions() -> None:
    with pytest.raises(TrainingError, match="does not offer channels_last"):
        prepared("predictor", channels_last=True)


def test_settings_are_refused_where_there_are_no_networks() -> None:
    config = config_with(DENOISER, {"compile": True})
    with pytest.raises(TrainingError, match="heads does not offer compile"):
        prepare_networks([], config)
