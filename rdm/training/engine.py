"""DeepSpeed behind four verbs: step, average, save, load. The only file that imports deepspeed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rdm.errors import MissingDependencyError, TrainingError
from rdm.models.precision import autocast
from rdm.training.muon import Muon
from rdm.training.objective import Objective
from rdm.training.recipes import TrainConfig


class Engine:
    """One rank of a DeepSpeed job: the objective under ZeRO in the run's precision."""

    def __init__(self, objective: Objective, config: TrainConfig) -> None:
        deepspeed = _import_deepspeed()
        self.config = config
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if config.batch_size % self.world_size:
            raise TrainingError(
                f"batch_size {config.batch_size} cannot be shared by {self.world_size} ranks",
                fix="--set batch_size to a multiple of the number of ranks",
            )
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        deepspeed.init_distributed(dist_backend="nccl" if self.device.type == "cuda" else "gloo", verbose=False)
        trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        optimizer = _optimizer(trainable, config)
        self._engine, *_ = deepspeed.initialize(
            model=objective.to(self.device),
            optimizer=optimizer,
            model_parameters=trainable,
            config=self._deepspeed_config(),
        )

    @property
    def objective(self) -> Objective:
        """The wrapped objective."""
        return self._engine.module

    def step(self, batch: dict[str, Tensor], generator: torch.Generator, learning_rate: float) -> dict[str, Tensor]:
        """Do one optimizer step on this rank's share of a batch; return the objective's scalars, detached."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        with autocast(self.device, self.config.precision):
            metrics = self._engine(moved, generator)
        self._engine.backward(metrics["loss"])
        self._engine.step()
        return {name: value.detach() for name, value in metrics.items()}

    @property
    def gradient_norm(self) -> float | None:
        """The gradient norm of the last step, before clipping; None without ZeRO, where DeepSpeed does not tell it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean of each value over the ranks; every rank must call it with the same names."""
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(values, (tensor / self.world_size).tolist(), strict=True))

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    def save(self, directory: Path) -> None:
        """Write weights and optimizer state below a directory; every rank must call it."""
        self._engine.save_checkpoint(str(directory), tag="engine", save_latest=False)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            TrainingError: the checkpoint is incomplete or was written by another number of ranks.
        """
        try:
            path, _ = self._engine.load_checkpoint(str(directory), tag="engine")
        except (OSError, ValueError, RuntimeError, KeyError, AssertionError) as error:
            raise TrainingError(
                f"the checkpoint cannot be loaded: {type(error).__name__}: {error}",
                where=directory,
                fix="delete this checkpoint: the one before it is then used",
            ) from error
        if path is None:
            raise TrainingError(
                "the checkpoint is incomplete",
                where=directory,
                fix="delete this checkpoint: the one before it is then used",
            )

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _deepspeed_config(self) -> dict[str, Any]:
        return {
            "train_batch_size": self.config.batch_size,
            "train_micro_batch_size_per_gpu": self.config.batch_size // self.world_size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.config.gradient_clip,
            "zero_optimization": {"stage": self.config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }


def _optimizer(trainable: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    betas = (0.9, config.beta2)
    if config.optimizer == "muon":
        return Muon(trainable, lr=config.learning_rate, matrix_scale=config.muon_scale, betas=betas)
    return torch.optim.AdamW(
        trainable, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay, fused=True
    )


def _import_deepspeed() -> Any:
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise MissingDependencyError(
            "training needs DeepSpeed", fix="pip install 'retrieval-diffusion[train]'"
        ) from error
    # On a CPU DeepSpeed would compile a shared-memory communication op, which takes 40 s and needs a C++ compiler; gloo
    # carries a small model's gradients as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
