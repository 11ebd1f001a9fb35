"""What a network costs: counted, and compared with counts by hand, with stated ones, and with
published ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from rdm.errors import UsageError
from rdm.recipes import recipe_config
from rdm.recipes.costs import kept_costs
from rdm.training.planning.cost import (
    NetworkCost,
    count_cost,
    memory_need,
    network_cost,
    state_bytes,
)
from rdm.training.planning.throughput import (
    PEAKS,
    device_name,
    expected_throughput,
    flop_rates,
    measured_throughput,
    peak_of,
)

GIGA = 1e9


class ConvolutionAndAttention(nn.Module):
    """A 3x3 convolution of 3 to 8 channels, and attention of two heads over the 6x6 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.to_qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attended positions, [B, 2, 36, 4]."""
        positions = self.convolution(x).flatten(2).transpose(1, 2)
        qkv = self.to_qkv(positions).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])


def small_case() -> tuple[nn.Module, object]:
    network = ConvolutionAndAttention()
    return network, lambda: network(torch.zeros(1, 3, 6, 6))


def test_flops_are_those_of_a_count_by_hand() -> None:
    cost = count_cost(small_case)  # pyright: ignore[reportArgumentType]
    convolution, projection = 2 * 36 * 8 * 3 * 9, 2 * 36 * 8 * 24
    attention = 2 * (2 * 36 * 36 * 4) * 2  # two products of each head
    assert cost.parameters == 8 * 3 * 9 + 8 * 24
    assert cost.forward_flops == convolution + projection + attention
    # Backward: two products for each of the forward pass, but none for the gradient of the input
    # pictures.
    assert cost.step_flops == 3 * cost.forward_flops - convolution


def test_activations_are_what_the_backward_pass_needs() -> None:
    cost = count_cost(small_case)  # pyright: ignore[reportArgumentType]
    pictures, positions = 3 * 36, 36 * 8
    # The pictures, the convolution's output, q, k and v, the attention's output and its
    # normalizers; no 36x36 scores.
    assert cost.activation_bytes == 4 * (pictures + positions + 3 * positions + positions + 2 * 36)


@pytest.mark.slow
def test_checkpointing_saves_activations_and_costs_no_model_flops() -> None:
    found = network_cost(
        recipe_config("rdm-tiny").with_overrides(["activation_checkpointing=true"])
    )
    stated = kept_costs()["rdm-tiny"]
    assert found is not None
    assert stated is not None
    assert found.step_flops == stated.step_flops
    assert found.activation_bytes <= 0.3 * stated.activation_bytes


def test_the_official_networks_have_the_published_costs() -> None:
    stated = {name: cost for name, cost in kept_costs().items() if cost is not None}
    assert stated["rdm-imagenet"].parameters == 400_920_579
    assert stated["rdm-ffhq"].parameters == 414_713_603
    assert stated["ldm-imagenet"] == stated["rdm-imagenet"]
    # LDM-4's network, the same but for one context token, has 103.6 G multiply-adds (Peebles and
    # Xie 2023, section 5).
    assert stated["rdm-imagenet"].forward_flops / 2 == pytest.approx(103.6 * GIGA, rel=0.01)


@pytest.mark.slow
def test_resnet_50_has_the_multiply_adds_that_torchvision_states() -> None:
    from torchvision.models import ResNet50_Weights, resnet50

    def case() -> tuple[nn.Module, object]:
        network = resnet50().eval()
        return network, lambda: network(torch.zeros(1, 3, 224, 224))

    cost = count_cost(case)  # pyright: ignore[reportArgumentType]
    assert cost.parameters == ResNet50_Weights.IMAGENET1K_V1.meta["num_params"]
    assert cost.forward_flops / 2 == pytest.approx(
        ResNet50_Weights.IMAGENET1K_V1.meta["_ops"] * GIGA, rel=1e-3
    )


def test_heads_on_ready_features_have_no_network_to_count() -> None:
    assert network_cost(recipe_config("clip-lite")) is None


@pytest.mark.parametrize(
    ("stage", "ranks", "expected"),
    [(0, 4, 16), (1, 1, 20), (1, 4, 11), (2, 4, 8), (3, 1, 20), (3, 4, 5)],
)
def test_the_state_of_a_parameter_is_zeros_arithmetic(
    stage: int, ranks: int, expected: int
) -> None:
    assert state_bytes(stage, ranks) == expected


def test_memory_counts_a_ranks_share_of_a_batch_and_each_average() -> None:
    config = recipe_config("rdm-tiny").with_overrides(["batch_size=8", "more_ema_decays=[0.9]"])
    cost = NetworkCost(parameters=1000, forward_flops=1, step_flops=3, activation_bytes=50)
    need = memory_need(config, cost, num_ranks=2)
    assert (need.state, need.averages, need.activations) == (14_000, 4_000, 200)
    assert need.total == 18_200
    whole = memory_need(
        config.with_overrides(["zero_stage=0", "micro_batch_size=2"]), cost, num_ranks=2
    )
    assert (whole.state, whole.averages, whole.activations) == (16_000, 8_000, 100)


def test_expected_throughput_is_a_share_of_a_peak_and_says_so() -> None:
    cost = NetworkCost(parameters=1, forward_flops=10**9, step_flops=3 * 10**9, activation_bytes=1)
    found = expected_throughput(cost, "a100", 0.5)
    assert found.samples_per_second == pytest.approx(312e12 * 0.5 / 3e9)
    assert "assumed, not measured: 50% of the 312 TFLOP/s of one a100" in found.basis


@pytest.mark.parametrize(("device", "utilization"), [("abacus", 0.5), ("h200", 0), ("h200", 45)])
def test_unknown_devices_and_shares_are_refused(device: str, utilization: float) -> None:
    cost = NetworkCost(1, 1, 3, 1)
    with pytest.raises(UsageError):
        expected_throughput(cost, device, utilization)


def test_measured_throughput_is_of_this_machine_and_says_so() -> None:
    config = recipe_config("rarm-tiny").with_overrides(
        ["objective.network.num_layers=1", "objective.network.side=4", "device=cpu"]
    )
    cost = network_cost(config)
    assert cost is not None
    found = measured_throughput(config, cost, batch_size=2)
    assert found.flops_per_second == pytest.approx(found.samples_per_second * cost.step_flops)
    assert found.utilization is None
    assert "measured: 3 forward and backward passes of 2 samples on the CPU" in found.basis


def test_statistics_name_a_share_only_of_a_peak_that_is_known() -> None:
    cost = NetworkCost(1, 1, 3 * 10**9, 1)
    assert flop_rates(cost, 100.0, None) == {"model_flops_per_second": 3e11}
    assert flop_rates(cost, 100.0, 2 * PEAKS["a100"])["model_flop_utilization"] == pytest.approx(
        3e11 / 624e12
    )
    assert flop_rates(None, 100.0, 1e15) == {}


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert peak_of(device_name(torch.device("cpu"))) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 2080 Ti", None),
    ],
)
def test_devices_are_known_by_their_names(name: str, kind: str | None) -> None:
    assert peak_of(name) == (PEAKS[kind] if kind else None)
