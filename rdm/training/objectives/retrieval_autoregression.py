"""RARM's objective: the next codebook row, conditioned on neighbors' embeddings (Blattmann et al. 2022, eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config
from rdm.diffusion.autoregressive import autoregressive_loss, autoregressive_sample
from rdm.errors import CacheError
from rdm.models.first_stage.first_stage import load_autoencoder, to_uint8
from rdm.models.token_predictor import (
    TokenPredictor,
    TokenPredictorConfig,
    build_token_predictor,
    save_token_predictor,
)
from rdm.training.data.latents import (
    ConditioningConfig,
    LatentData,
    neighbor_context,
    open_latents,
    provenance,
    training_context,
)
from rdm.training.model_folder import model_info, write_info
from rdm.training.objectives.objective import Objective


class RetrievalAutoregressionConfig(Config):
    """Configuration of the objective `retrieval-autoregression`."""

    kind: Literal["retrieval-autoregression"] = "retrieval-autoregression"
    predictor: TokenPredictorConfig = TokenPredictorConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    held_out_fraction: float = Field(
        default=0.12, ge=0, lt=1, description="share of the query photographs kept for measuring"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.conditioning.mean_vector:
            raise ValueError("the token predictor reads no vector: leave conditioning.mean_vector out")
        return self


class RetrievalAutoregressionObjective(Objective):
    """-log p(z_i | z_<i, {phi(y)}), mean over tokens, in nats."""

    def __init__(self, config: RetrievalAutoregressionConfig, provenance: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.provenance = provenance
        self.predictor: TokenPredictor = build_token_predictor(config.predictor)

    @property
    def networks(self) -> Sequence[Any]:
        """See Objective."""
        return (self.predictor.transformer,)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See Objective. `batch["indices"]` is int32 [B, H, W]."""
        tokens = batch["indices"].flatten(1).long()
        context = training_context(batch["neighbors"], self.config.conditioning, generator)
        return {"loss": autoregressive_loss(self.predictor, tokens, context).mean()}

    @torch.no_grad()
    def preview(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """See Objective: samples whose neighbors are those of the training samples, with a seed for each."""
        side, neighbors = self.config.predictor.side, batch["neighbors"]
        tokens, _ = autoregressive_sample(
            self._predictor_with(state).eval().to(neighbors.device).begin,
            neighbor_context(neighbors, self.config.conditioning),
            length=side * side,
            seeds=range(len(neighbors)),
        )
        first_stage = load_autoencoder(str(self.provenance["autoencoder"]))
        return to_uint8(first_stage.decode_indices(tokens.cpu().reshape(-1, side, side)))

    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """See Objective: `predictor/` opens with transformers' `from_pretrained`; `model.json` holds the rest."""
        save_token_predictor(self._predictor_with(state), directory / "predictor")
        write_info(directory, model_info(self.config, self.provenance))

    def _predictor_with(self, state: Mapping[str, Tensor]) -> TokenPredictor:
        predictor = build_token_predictor(self.config.predictor)
        weights = {name.removeprefix("predictor."): value for name, value in state.items()}
        missing = predictor.load_state_dict(weights, strict=False)
        assert not missing.unexpected_keys
        assert set(missing.missing_keys) <= {"transformer.lm_head.weight"}  # the token embedding itself
        return predictor


def open_training(
    cache: str, database: str, config: RetrievalAutoregressionConfig
) -> tuple[LatentData, RetrievalAutoregressionObjective]:
    """Return the training data and the objective of a cache of codebook indices and a database.

    Raises:
        CacheError: the cache holds no indices, or those of another codebook or size, or belongs to another query set.
    """
    predictor = config.predictor
    data, first_stage = open_latents(cache, database, config, predictor.cross_attention_dim)
    if data.cache.content != "indices":
        raise CacheError(
            f"the cache holds {data.cache.content}, not codebook indices",
            where=cache,
            fix="rdm cache build --autoencoder VQ-FOLDER --set content=indices",
        )
    codebook_size = 0 if first_stage.codebook is None else len(first_stage.codebook)
    side = data.cache.config.resolution // first_stage.factor
    for name, have, want in (
        ("codebook_size", codebook_size, predictor.codebook_size),
        ("side", side, predictor.side),
    ):
        if have != want:
            raise CacheError(
                f"the cache's {name} is {have}, the network's {want}",
                where=cache,
                fix=f"--set objective.predictor.{name}={have}",
            )
    return data, RetrievalAutoregressionObjective(config, provenance(data))
