"""The objective of every generator: the mean loss of its head over rows of a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor

from rdm.errors import CacheError, ModelError
from rdm.generators.conditions import Condition
from rdm.generators.generator import Generator, GeneratorConfig
from rdm.generators.model_folder import (
    INFO,
    NETWORK,
    check_text_network,
    model_info,
    open_conditions,
    open_space,
    write_model,
)
from rdm.generators.provenance import Provenance
from rdm.generators.sample_settings import SampleSettings
from rdm.generators.spaces import Space
from rdm.models.assets import absolute_name, named_folder
from rdm.models.first_stage.first_stage import FirstStage, load_autoencoder
from rdm.models.networks import load_network, network_with
from rdm.training.data.rows import TrainingRows
from rdm.training.objectives.objective import Objective

_PREVIEW_STEPS = 25


class GenerativeConfig(GeneratorConfig):
    """Configuration of the objective `generative`."""

    kind: Literal["generative"] = "generative"
    held_out_fraction: float = Field(
        default=0.12, ge=0, lt=1, description="share of the query photographs kept for measuring"
    )
    start: Annotated[str, AfterValidator(absolute_name)] | None = Field(
        default=None,
        description="a model, assets:// or a folder, whose network training goes on from; "
        "None: random weights",
    )


class GenerativeObjective(Objective):
    """The mean loss of a generator, with conditions dropped out as configured."""

    def __init__(
        self,
        config: GenerativeConfig,
        provenance: Provenance,
        space: Space,
        conditions: Sequence[Condition],
    ) -> None:
        super().__init__()
        self.config = config
        self.provenance = provenance
        self.generator = Generator(config, space, conditions)

    @property
    def networks(self) -> Sequence[Any]:
        """See Objective."""
        return (self.generator.network.core,)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See Objective."""
        losses = self.generator.loss(batch, generator)
        if losses.timesteps is None:
            return {"loss": losses.values.mean()}
        return {
            "loss": losses.values.mean(),
            "timesteps": losses.timesteps,
            "losses": losses.values,
        }

    @torch.no_grad()
    def preview(
        self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> NDArray[np.uint8]:
        """See Objective: samples in the context of training samples, with a seed for each."""
        generator = self._with(state).eval().to(next(iter(batch.values())).device)
        count = len(next(iter(batch.values())))
        return generator.grid(generator.context_of(batch), range(count), self._preview_settings)

    @property
    def _preview_settings(self) -> SampleSettings:
        head = self.config.head
        most = head.schedule.num_timesteps if head.kind == "gaussian" else _PREVIEW_STEPS
        return SampleSettings(num_steps=min(_PREVIEW_STEPS, most), guidance_scale=1.0)

    def start_from_model(self, directory: str) -> None:
        """Take the weights of a model's network: `assets://NAME` or a model folder.

        Raises:
            ModelError: it holds none, or one of other sizes.
        """
        network = self.generator.network
        weights = load_network(
            named_folder(directory, INFO, "model") / NETWORK, self.config.network
        ).state_dict()
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise ModelError(
                "this model has another network than the one to be trained",
                where=directory,
                fix="set objective.network to its sizes, or leave objective.start out",
            )
        network.load_state_dict(weights)

    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """See Objective: a folder for `open_model`; `network/` opens with `from_pretrained`."""
        write_model(directory, model_info(self.config, self.provenance), self._with(state).network)

    def _with(self, state: Mapping[str, Tensor]) -> Generator:
        """Return a generator of its own with given weights."""
        prefix = "generator.network."
        # A network of its own: the one that trains keeps its weights, and ZeRO may cut them up.
        network = network_with(
            self.config.network, {name.removeprefix(prefix): value for name, value in state.items()}
        )
        return Generator(self.config, self.generator.space, self.generator.conditions, network)


def open_training(
    cache: str, database: str | None, config: GenerativeConfig
) -> tuple[TrainingRows, GenerativeObjective]:
    """Return data and objective of a cache and, where neighbors condition, a database.

    Raises:
        UsageError: neighbors condition, and there is no database.
        CacheError: the cache belongs to another first stage, another query set, or to another space
            or shape.
    """
    rows = TrainingRows.open(cache, database, config)
    first_stage = _first_stage_of(rows)
    _check_content(rows, config)
    _check_embeddings(rows, config)

    # Everything that does not fit is refused before a job starts.
    space = open_space(config.space, first_stage, config.network.sample_shape)
    _check_shape(rows, config, space)
    if config.space.kind == "tokens":
        _check_codebook(rows, config, first_stage)

    conditions, provenance = open_conditions(config), rows.provenance()
    check_text_network(conditions, provenance.text_encoder_digest, cache)
    objective = GenerativeObjective(config, provenance, space, conditions)
    if config.start is not None:
        objective.start_from_model(config.start)
    return rows, objective


def _first_stage_of(rows: TrainingRows) -> FirstStage | None:
    """Return the first stage that a cache was made with, and is still the same; None of pixels."""
    name = rows.cache.config.autoencoder
    if name is None:
        return None
    first_stage = load_autoencoder(name)
    if first_stage.latents_digest != rows.cache.info.latents_digest:
        raise CacheError(
            "the latents were made by another first stage",
            where=rows.cache.folder.url,
            fix="build the cache again",
        )
    return first_stage


_CONTENTS = {
    "pixels": (("pixels",), "pixels", "rdm cache build --autoencoder none, into a new folder"),
    "latents": (
        ("moments", "latents"),
        "latents",
        "rdm cache build with an autoencoder, --set content=latents of a VQ one, into a new folder",
    ),
    "tokens": (
        ("indices",),
        "codebook indices",
        "rdm cache build --autoencoder VQ-FOLDER --set content=indices",
    ),
}


def _check_content(rows: TrainingRows, config: GenerativeConfig) -> None:
    contents, wanted, fix = _CONTENTS[config.space.kind]
    if rows.cache.content not in contents:
        found = "codebook indices" if rows.cache.content == "indices" else rows.cache.content
        raise CacheError(
            f"the cache holds {found}, not {wanted}", where=rows.cache.folder.url, fix=fix
        )


def _check_embeddings(rows: TrainingRows, config: GenerativeConfig) -> None:
    if rows.neighbors is None:
        return
    database, dim = rows.neighbors.database, config.network.cross_attention_dim
    if database.version.embedding_dim != dim:
        raise CacheError(
            f"embeddings have {database.version.embedding_dim} dimensions, the network reads {dim}",
            where=database.folder.url,
            fix="set the objective's network to read them (cross_attention_dim)",
        )


def _check_shape(rows: TrainingRows, config: GenerativeConfig, space: Space) -> None:
    found, wanted = space.shape(rows.cache.config.resolution), config.network.sample_shape
    if found == wanted:
        return

    # Say which setting mends it: sequences have a side, pictures channels and a side.
    where = rows.cache.folder.url
    if config.network.kind == "token-predictor":
        side = round(found[0] ** 0.5)
        raise CacheError(
            f"the cache's side is {side}, the network's {config.network.side}",
            where=where,
            fix=f"--set objective.network.side={side}",
        )

    if found[0] != wanted[0]:
        raise CacheError(
            f"the {config.space.kind} have {found[0]} channels, the network draws {wanted[0]}",
            where=where,
            fix="set objective.network.in_channels and .out_channels",
        )

    side = found[1]
    resolution = rows.cache.config.resolution * wanted[1] // side
    raise CacheError(
        f"the {config.space.kind} are {side}x{side}, the network draws {wanted[1]} by {wanted[1]}",
        where=where,
        fix=f"--set objective.network.sample_size={side}, or a cache of --set "
        f"resolution={resolution}",
    )


def _check_codebook(
    rows: TrainingRows, config: GenerativeConfig, first_stage: FirstStage | None
) -> None:
    codebook = None if first_stage is None else first_stage.codebook
    have = 0 if codebook is None else len(codebook)
    if config.network.kind == "token-predictor" and have != config.network.codebook_size:
        raise CacheError(
            f"the cache's codebook_size is {have}, the network's {config.network.codebook_size}",
            where=rows.cache.folder.url,
            fix=f"--set objective.network.codebook_size={have}",
        )
