"""The configuration of a training run, and its inputs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rdm.config import Config
from rdm.errors import UsageError
from rdm.models.precision import Precision
from rdm.sources.open import absolute_spec
from rdm.storage.files import absolute_path, absolute_url
from rdm.training.objectives.autoencoder_config import AutoencoderObjectiveConfig
from rdm.training.objectives.contrastive import ContrastiveConfig
from rdm.training.objectives.generative import GenerativeConfig

ObjectiveConfig = Annotated[
    GenerativeConfig | AutoencoderObjectiveConfig | ContrastiveConfig,
    Field(discriminator="kind"),
]


class TrainConfig(Config):
    """Everything that decides the result of a training run, with its inputs aside."""

    recipe: str = Field(description="name of the recipe that this configuration started from")
    objective: ObjectiveConfig
    max_steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="samples per step, over all ranks")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: orthogonalized momentum for matrices; needs zero_stage 0",
    )
    muon_scale: float = Field(
        default=2.5, gt=0, description="learning rate of matrices under muon, in learning_rate"
    )
    learning_rate: float = Field(gt=0, description="peak learning rate")
    lr_schedule: Literal["cosine", "constant", "wsd"] = Field(
        default="cosine",
        description="after the warm-up; wsd: constant, then linear to 0 in the last decay_share",
    )
    decay_share: float = Field(
        default=0.2, gt=0, le=1, description="share of max_steps in which wsd decays"
    )
    warmup_steps: int = Field(default=100, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.01, ge=0, description="of adamw; muon has none")
    beta2: float = Field(default=0.999, gt=0, lt=1, description="AdamW's second moment decay")
    gradient_clip: float = Field(
        default=1.0, ge=0, description="greatest gradient norm; 0: no clipping"
    )
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="of the weights in OUT/model")
    more_ema_decays: tuple[float, ...] = Field(
        default=(), description="further averages, each exported as OUT/model-ema-DECAY"
    )
    precision: Precision | Literal["fp16"] = Field(
        default="auto",
        description="bf16: autocast with fp32 weights; fp16: 16-bit weights and a loss "
        "scale, GPUs only; auto: bf16 "
        "where that is faster",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: GPUs where there are any"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="what DeepSpeed ZeRO shares out: 1 moments, 2 and gradients, 3 and weights",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="samples of one forward pass, gradients are accumulated over the rest of "
        "a rank's share; None: the "
        "whole share",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute activations again in the backward pass: less memory, a third "
        "more work",
    )
    compile: bool = Field(default=False, description="compile the network with torch.compile")
    channels_last: bool = Field(
        default=False, description="convolutions compute in the channels-last memory format"
    )
    num_ranks: int | None = Field(
        default=None,
        ge=1,
        description="processes on this machine; None: one per accelerator, or two on a "
        "machine that has none",
    )
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_every: int = Field(default=500, ge=1, description="steps")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="how many of the newest checkpoints stay"
    )
    keep_best: bool = Field(
        default=True, description="keep the checkpoint of the lowest mean loss too"
    )
    log_every: int = Field(default=10, ge=1, description="steps between lines of stats.jsonl")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(), description="where the lines of stats.jsonl go too"
    )
    grids_per_decade: int = Field(
        default=1,
        ge=0,
        description="grids of samples from the averaged weights, at steps in equal ratios "
        "from 10 on, and at the end",
    )

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """All decays, that of the exported model first."""
        return (
            self.ema_decay,
            *(decay for decay in self.more_ema_decays if decay != self.ema_decay),
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.optimizer == "muon" and self.zero_stage:
            raise ValueError(
                "optimizer=muon needs zero_stage=0: ZeRO cuts matrices into flat pieces"
            )
        if self.precision == "fp16" and not self.zero_stage:
            raise ValueError(
                "precision=fp16 needs a zero_stage of 1 or more, which keeps the fp32 weights"
            )

        if self.optimizer == "muon" and self.weight_decay not in (
            0,
            TrainConfig.model_fields["weight_decay"].default,
        ):
            raise ValueError("optimizer=muon has no weight decay: leave weight_decay out")

        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile=true needs a zero_stage below 3, whose hooks on every module undo "
                "most of it"
            )

        if not all(0 <= decay < 1 for decay in self.more_ema_decays):
            raise ValueError(f"more_ema_decays lie in [0, 1), not {self.more_ema_decays}")
        return self


def _absolute(url: str | None) -> str | None:
    return url and absolute_url(url)


def _absolute_sources(specs: str | None) -> str | None:
    return specs and ",".join(map(absolute_spec, specs.split(",")))


InputName = Literal["cache", "database", "source"]


class TrainInputs(Config):
    """Paths that a run reads and writes, valid in every working directory and on other machines."""

    out: Annotated[str, AfterValidator(absolute_path)]
    cache: Annotated[str | None, AfterValidator(_absolute)] = None
    database: Annotated[str | None, AfterValidator(_absolute)] = None
    source: Annotated[str | None, AfterValidator(_absolute_sources)] = None

    def require(self, name: InputName, recipe: str) -> str:
        """Return an input, or raise UsageError that says which flag gives it."""
        value = getattr(self, name)
        if value is None:
            raise UsageError(
                f"the recipe {recipe} needs --{name}",
                fix=f"rdm train --recipe {recipe} --{name} ...",
            )
        return str(value)
