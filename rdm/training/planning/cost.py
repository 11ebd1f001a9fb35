"""Parameters, FLOPs and memory of a recipe's training, counted on a network without data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rdm.models.first_stage.autoencoder import build_autoencoder
from rdm.models.networks import build_network
from rdm.training.config import ObjectiveConfig, TrainConfig
from rdm.training.engine.network_settings import checkpoint_activations, networks_of
from rdm.training.objectives.autoencoder_config import AutoencoderObjectiveConfig
from rdm.training.objectives.generative import GenerativeConfig

Case = tuple[nn.Module, Callable[[], Tensor]]
"""A network, and its forward pass of a batch that lies on the current device."""


@dataclass(frozen=True)
class NetworkCost:
    """What one sample costs in a network.

    FLOPs are the multiplications and the additions of matrix products, convolutions and attention:
    a multiply-add is two. Many papers print half of it under the same name. Norms, activations and
    the optimizer are left out. Causal attention counts as if every token saw all others.

    Attributes:
        parameters: that train.
        forward_flops: of a forward pass.
        step_flops: of a forward and a backward pass; what activation checkpointing computes again
            is left out.
        activation_bytes: what a forward pass leaves behind for the backward pass, in fp32, with
            fused attention.
    """

    parameters: int
    forward_flops: int
    step_flops: int
    activation_bytes: int


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of one rank, at most: in fp32, as autocast keeps weights, gradients and moments too."""

    state: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.state + self.averages + self.activations


def training_case(objective: ObjectiveConfig, batch_size: int) -> Case | None:
    """Return the network of an objective and its forward pass in training, on torch's default
    device.

    None for heads on ready features. The networks that a loss is made of, such as those of a
    perceptual loss, do not belong to it.
    """
    case = _CASES.get(type(objective))
    return None if case is None else case(objective, batch_size)


def network_cost(config: TrainConfig) -> NetworkCost | None:
    """Return what one sample costs in a recipe's network; None for heads on ready features."""
    case = _CASES.get(type(config.objective))
    if case is None:
        return None
    return count_cost(
        lambda: case(config.objective, 1), checkpointing=config.activation_checkpointing
    )


def memory_need(config: TrainConfig, cost: NetworkCost, num_ranks: int = 1) -> MemoryNeed:
    """Return what one of N ranks needs, by ZeRO's arithmetic and the counted activations."""
    averages = len(config.ema_decays) * 4 * cost.parameters
    return MemoryNeed(
        state=math.ceil(state_bytes(config.zero_stage, num_ranks) * cost.parameters),
        averages=math.ceil(averages / num_ranks) if config.zero_stage else averages,
        activations=(config.micro_batch_size or math.ceil(config.batch_size / num_ranks))
        * cost.activation_bytes,
    )


def state_bytes(zero_stage: int, num_ranks: int) -> float:
    """Return a rank's bytes per parameter: weights, gradients, ZeRO's fp32 copy, two moments."""
    # 4 bytes each; what a stage shares, and the copy that ZeRO adds, is divided by the ranks.
    whole, shared = {0: (16, 0), 1: (8, 12), 2: (4, 16), 3: (0, 20)}[zero_stage]
    return whole + shared / num_ranks


def count_cost(build: Callable[[], Case], *, checkpointing: bool = False) -> NetworkCost:
    """Return the cost of a network, counted forward and backward over shapes without numbers.

    Args:
        build: returns the network with a forward pass of one sample.
        checkpointing: count the activations of a network that keeps its blocks' inputs only.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode():
        network, run = build()
        with (
            _Live(network) as live,
            FlopCounterMode(display=False, custom_mapping=_model_flops()) as counter,
        ):
            result = run()
            forward, activations = counter.get_total_flops(), live.num_bytes
            result.float().square().mean().backward()
        if checkpointing:
            for part in networks_of(network):
                checkpoint_activations(part)
            with _Live(network) as live:
                result = run()
                activations = live.num_bytes
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return NetworkCost(parameters, forward, counter.get_total_flops(), activations)


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors made inside and still held, without views of weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._weights = {
            StorageWeakRef(weight.untyped_storage()) for weight in network.state_dict().values()
        }
        self._storages: dict[StorageWeakRef, int] = {}

    @property
    def num_bytes(self) -> int:
        return sum(size for storage, size in self._storages.items() if not storage.expired())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> None:
        # By storage and not by tensor: views share their bytes, and would be counted several times.
        storage = tensor.untyped_storage()
        if (key := StorageWeakRef(storage)) not in self._weights:
            self._storages[key] = storage.nbytes()


def _model_flops() -> dict[Any, Any]:
    """Return the count of fused attention's backward pass without the scores that it computes
    again."""
    from torch.utils.flop_counter import sdpa_flop_count

    def backward(_: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        # Gradients of two matrix products are two products each.
        return 2 * sdpa_flop_count(query, key, value)

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward}


def _generator_case(objective: GenerativeConfig, batch_size: int) -> Case:
    config = objective.network
    network, context = build_network(config), objective.zero_context(batch_size)
    if config.kind == "token-predictor":
        rows = torch.zeros(batch_size, config.length - 1, dtype=torch.int64)
        return network, lambda: network(rows, context)
    samples = torch.zeros(batch_size, config.in_channels, config.sample_size, config.sample_size)
    times = torch.zeros(batch_size, dtype=torch.int64)
    return network, lambda: network(samples, times, context)


def _autoencoder_case(objective: AutoencoderObjectiveConfig, batch_size: int) -> Case:
    network = build_autoencoder(objective.network)
    pictures = torch.zeros(batch_size, 3, objective.crop_size, objective.crop_size)
    return network, lambda: network(pictures).sample


_CASES: dict[type, Callable[[Any, int], Case]] = {
    GenerativeConfig: _generator_case,
    AutoencoderObjectiveConfig: _autoencoder_case,
}
