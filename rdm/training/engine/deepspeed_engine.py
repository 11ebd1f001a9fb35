"""DeepSpeed behind a few verbs: step, average, gather, load. Nothing else imports deepspeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rdm.errors import MissingDependencyError
from rdm.training.config import TrainConfig
from rdm.training.engine.deepspeed_config import deepspeed_config
from rdm.training.engine.network_settings import prepare_networks
from rdm.training.engine.optimizer import build_optimizer
from rdm.training.engine.parameter_layout import Layout, Piece, Place, replicated_layout
from rdm.training.engine.training_device import autocast_dtype, distributed_place, training_device
from rdm.training.objectives.objective import Objective

MicroBatch = tuple[dict[str, Tensor], torch.Generator, int]
"""Samples, what draws their noise, and the seed of the networks' own dropout."""


@dataclass(frozen=True)
class StepResult:
    """What the ranks' forward passes of one step said.

    Attributes:
        metrics: scalars, the mean over this rank's micro-batches, on the device.
        samples: one entry per sample of this rank's share, on the device, such as each sample's
            timestep.
    """

    metrics: dict[str, Tensor]
    samples: dict[str, Tensor]


@dataclass(frozen=True)
class OptimizerState:
    """The optimizer's memory by name, the same whatever the number of ranks.

    Attributes:
        moments: for each kind (`exp_avg`, ...), fp32 tensors by parameter name.
        counts: for each kind of count (`step`), its value.
    """

    moments: Mapping[str, Mapping[str, Tensor]]
    counts: Mapping[str, float]


class _Step(nn.Module):
    """The objective's forward pass in the run's precision.

    Autocast belongs inside the engine: DeepSpeed switches off what is entered outside of it, on
    CUDA without an error. It may keep no cast weights under ZeRO 3, which frees weights while they
    are kept.
    """

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        super().__init__()
        self.objective = objective
        self._device_type = device.type
        self._dtype = autocast_dtype(config, device)
        self._keeps_casts = config.zero_stage != 3

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See Objective."""
        dtype = self._dtype or torch.bfloat16
        autocast = torch.autocast(
            self._device_type, dtype, self._dtype is not None, cache_enabled=self._keeps_casts
        )
        with autocast, self._attention():
            return self.objective(batch, generator)

    def _attention(self) -> AbstractContextManager[object]:
        """Attend by plain products in 16 bits on a CPU: the fused kernel is slower backward."""
        if self._device_type == "cpu" and self._dtype is not None:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()


class Engine:
    """One rank of a DeepSpeed job: the objective under ZeRO in the run's precision.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        device: where the network computes.
        accumulation: micro-batches of this rank per step.
        layout: where each trainable parameter lies among the ranks.
        objective: the loss with its networks.
    """

    def __init__(self, objective: Objective, config: TrainConfig, micro_batch_size: int) -> None:
        """Join the job that the launcher's environment describes and put the objective under ZeRO.

        Args:
            objective: the same weights on every rank.
            config: the run's.
            micro_batch_size: samples of one forward pass; divides this rank's share of
                `batch_size`.

        Raises:
            TrainingError: there is no such device, the ranks cannot share the batch, or the
                recipe's networks do not offer what was asked of them.
        """
        deepspeed = _import_deepspeed()
        self.config = config
        self.rank, self.world_size = distributed_place()
        self.device = training_device(config)
        self.accumulation = config.batch_size // self.world_size // micro_batch_size
        deepspeed.init_distributed(
            dist_backend="nccl" if self.device.type == "cuda" else "gloo", verbose=False
        )

        # The optimizer sees only weights that train: frozen ones have no place in ZeRO.
        prepare_networks(objective.networks, config)
        self.objective = objective.to(self.device)
        trainable = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self._engine, *_ = deepspeed.initialize(
            model=_Step(self.objective, config, self.device),
            optimizer=build_optimizer(list(trainable.values()), config, self.device),
            model_parameters=list(trainable.values()),
            config=deepspeed_config(config, micro_batch_size, self.accumulation, trainable),
        )

        self._parameters = trainable
        self._norm: Tensor | None = None
        self.layout = self._find_layout()

    def staged(self, array: NDArray[Any]) -> Tensor:
        """Return an array as a tensor that `step` copies asynchronously, page-locked for a GPU."""
        # No copy; only memory that is page-locked can be copied while the GPU computes.
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def step(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> StepResult:
        """Do one optimizer step on this rank's share of a batch, `accumulation` micro-batches."""
        # The loop owns the schedule, so the rate is a function of the step alone and resumes
        # exactly. Muon's groups of matrices move by `lr_scale` times as much.
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)

        # DeepSpeed steps the optimizer with the last micro-batch only.
        results = []
        for batch, generator, dropout_seed in micro_batches:
            # Dropout draws from torch's global generator: no other one can be passed to it.
            torch.manual_seed(dropout_seed)
            moved = {
                name: value.to(self.device, non_blocking=True) for name, value in batch.items()
            }
            result = self._engine(moved, generator)
            self._engine.backward(result["loss"])
            # Before DeepSpeed's step, which clips the gradients and then clears them.
            if self.config.zero_stage == 0 and self._engine.is_gradient_accumulation_boundary():
                self._norm = nn.utils.get_total_norm(
                    [p.grad for p in self._parameters.values() if p.grad is not None]
                )
            self._engine.step()
            # Detached, and left on the device: reading a number here would wait for the GPU at
            # every micro-batch.
            results.append({name: value.detach() for name, value in result.items()})
        return _merged(results)

    @property
    def gradient_norm(self) -> float | Tensor | None:
        """Gradient norm of the last step before clipping, also where ZeRO is off."""
        return self._engine.get_global_grad_norm() if self.config.zero_stage else self._norm

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """Return each value's mean over the ranks, which all call it with the same names."""
        # One reduction for all: the names give the order, so ranks must share them.
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(values, (tensor / self.world_size).tolist(), strict=True))

    def least(self, value: int) -> int:
        """Return the least value of all ranks; every rank must call it."""
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor)

    def agree(self, value: int) -> int:
        """Return rank 0's value; every rank must call it."""
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor)

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    def owned_weights(self) -> list[Tensor]:
        """Return the fp32 weights that this rank owns, all of them in one place among the ranks.

        Without ZeRO these are the parameters, on rank 0; with it, flat parts of them on every rank.
        """
        return self._weight_shards() if self.layout.shared or self.rank == 0 else []

    def gather(self, shards: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what is shaped like `owned_weights()` as fp32 CPU tensors by parameter name, on
        rank 0 only."""
        return self.layout.gather(dict(enumerate(shards)), self.rank)

    def scatter(self, read: Callable[[str], Tensor], shards: Sequence[Tensor]) -> None:
        """Fill shards like `owned_weights()` from whole tensors that `read` returns by name."""
        self.layout.scatter(read, dict(enumerate(shards)))

    def moment_kinds(self) -> list[str]:
        """Return the optimizer's moments, such as `exp_avg`, in an order that all ranks share."""
        return sorted({kind for shard in self._weight_shards() for kind in self._moments(shard)})

    def gather_moments(self, kind: str) -> dict[str, Tensor]:
        """Return one kind of moment as fp32 CPU tensors by parameter name, on rank 0 only."""
        found = {number: self._moments(shard) for number, shard in enumerate(self._weight_shards())}
        return self.layout.gather(
            {number: own[kind] for number, own in found.items() if kind in own}, self.rank
        )

    def optimizer_counts(self) -> dict[str, float]:
        """Return the optimizer's counts, such as `step`: the same for all parameters."""
        states = [self._base_optimizer.state.get(shard, {}) for shard in self._weight_shards()]
        return {kind: float(state[kind]) for state in states for kind in _COUNTS if kind in state}

    @torch.no_grad()
    def load(self, weights: Callable[[str], Tensor], state: OptimizerState) -> None:
        """Take up weights and the optimizer's memory of a job with any number of ranks.

        Args:
            weights: returns a parameter by name.
            state: with the moments of every parameter, on every rank.
        """
        # Both copies: with the optimizer's alone, the first forward pass would use the fresh
        # weights; with the network's alone, the first step would put them back.
        self.layout.scatter(weights, dict(enumerate(self._weight_shards())))
        for name, parameter in self._parameters.items():
            _set_parameter(parameter, weights(name), self.rank)
        for number, shard in enumerate(self._weight_shards()):
            self._restore_optimizer(number, shard, state)

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """The state of fp16's dynamic loss scale; None in other precisions."""
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if self.config.precision != "fp16" or scaler is None:
            return None
        return {name: getattr(scaler, name) for name in _LOSS_SCALE_FIELDS}

    @loss_scale.setter
    def loss_scale(self, values: Mapping[str, float] | None) -> None:
        for name, value in (values or {}).items():
            setattr(self._engine.optimizer.loss_scaler, name, value)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _moments(self, shard: Tensor) -> dict[str, Tensor]:
        state = self._base_optimizer.state.get(shard, {})
        return {kind: value for kind, value in state.items() if kind not in _COUNTS}

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        return optimizer.optimizer if self.config.zero_stage else optimizer

    def _weight_shards(self) -> list[Tensor]:
        if self.config.zero_stage == 0:
            return list(self._parameters.values())
        optimizer = self._engine.optimizer
        return list(
            optimizer.fp32_partitioned_groups_flat
            if self.config.zero_stage == 3
            else optimizer.single_partition_of_fp32_groups
        )

    def _find_layout(self) -> Layout:
        if self.config.zero_stage == 0:
            return replicated_layout(self._parameters)
        find = self._piece_of_stage_3 if self.config.zero_stage == 3 else _piece_of_stage_1_and_2
        places = [Place(name, _full_shape(p), find(p)) for name, p in self._parameters.items()]
        return Layout(places, shared=True)

    def _piece_of_stage_3(self, parameter: Any) -> Piece | None:
        optimizer = self._engine.optimizer
        shard, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = self.rank * count
        held = min(count, parameter.ds_numel - start)
        return Piece(shard, offset, start, held) if held > 0 else None

    def _restore_optimizer(self, number: int, shard: Tensor, state: OptimizerState) -> None:
        own = self._base_optimizer.state[shard]
        names = {
            place.name
            for place in self.layout.places
            if place.piece and place.piece.shard == number
        }

        # Kinds of moments differ by parameter: Muon keeps one for matrices, AdamW two.
        kinds = [kind for kind, tensors in state.moments.items() if not names.isdisjoint(tensors)]
        for kind in kinds:
            # A fresh optimizer has no moments before its first step.
            own.setdefault(kind, torch.zeros_like(shard))
            self.layout.scatter(state.moments[kind].__getitem__, {number: own[kind]})

        for kind, value in state.counts.items() if kinds else ():
            # torch's own optimizers count in a tensor on the parameter's device, ours in a Python
            # number
            own[kind] = torch.tensor(value, device=shard.device) if kind == "step" else int(value)


_COUNTS = ("step", "count")
_LOSS_SCALE_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def _set_parameter(parameter: Any, value: Tensor, rank: int) -> None:
    """Fill what the network computes with, beside the optimizer's own fp32 copy."""
    # ZeRO 3 leaves `parameter.data` empty and keeps this rank's equal part of it in `ds_tensor`.
    partition = getattr(parameter, "ds_tensor", None)
    if partition is None:
        parameter.data.copy_(value)
        return
    count = partition.numel()
    # The last rank's part is shorter where the count does not divide: the rest is padding.
    part = value.reshape(-1)[rank * count : (rank + 1) * count]
    partition.data[: part.numel()].copy_(part)
    if parameter.data.numel() == parameter.ds_numel:  # small parameters stay whole on every rank
        parameter.data.copy_(value.view(parameter.ds_shape))


def _full_shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _piece_of_stage_1_and_2(parameter: Any) -> Piece | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    # `lp`: the fragment's place in the parameter; `hp`: in its group's flat fp32 shard.
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(mapping.param_group_index, there.start, here.start, here.numel)


def _merged(results: Sequence[dict[str, Tensor]]) -> StepResult:
    metrics: dict[str, Tensor] = {}
    samples: dict[str, Tensor] = {}
    # A loss is a scalar per micro-batch and is averaged; what has a batch dimension is joined.
    for name, first in results[0].items():
        values = [result[name] for result in results]
        if first.dim():
            samples[name] = torch.cat(values)
        else:
            metrics[name] = first if len(values) == 1 else torch.stack(values).mean()
    return StepResult(metrics, samples)


def _import_deepspeed() -> Any:
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise MissingDependencyError(
            "training needs DeepSpeed", fix="pip install 'retrieval-diffusion[train]'"
        ) from error
    # On a CPU DeepSpeed would compile a shared-memory communication op, which takes 40 s and needs
    # a C++ compiler; gloo carries a small model's gradients as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
