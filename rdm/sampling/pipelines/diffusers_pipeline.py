"""diffusers' face of a model: a `DiffusionPipeline` of its components that asks our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from rdm.errors import ModelError
from rdm.generators.generator import Generator
from rdm.generators.model_folder import Model, ModelInfo, open_conditions, open_space
from rdm.models.first_stage.first_stage import FirstStage
from rdm.models.unconditional import UnconditionalDenoiser
from rdm.models.unet import Denoiser
from rdm.sampling.pipelines.retrieval_pipeline import Databases, RetrievalPipeline


class RetrievalDiffusionPipeline(DiffusionPipeline):
    """A thin adapter: components by diffusers, everything else by `RetrievalPipeline`.

    The sampler is that of the call's settings; the scheduler is there for those who take it out.
    """

    _optional_components = ("vae",)

    def __init__(
        self, unet: Any, scheduler: Any, vae: Any = None, rdm: dict[str, Any] | None = None
    ) -> None:
        """Put components together.

        Args:
            unet: the network.
            scheduler: with the model's noise levels.
            vae: the first stage; None of pixels.
            rdm: the model's description, as `model.json` has it.
        """
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(rdm=rdm)

    @torch.no_grad()
    def __call__(self, *args: Any, database: Databases | None = None, **kwargs: Any) -> Any:
        """Draw pictures; arguments as `RetrievalPipeline.__call__`, and where to look up.

        Args:
            args: of the call.
            database: a folder, an open database, or several by name.
            kwargs: of the call.
        """
        return RetrievalPipeline(self.as_model(), database)(*args, **kwargs)

    def as_model(self) -> Model:
        """Return the components as our own model.

        Raises:
            ModelError: they were put together without the model's description.
        """
        described = self.config.get("rdm")
        if described is None:
            raise ModelError(
                "the pipeline lacks the model's description",
                where="rdm",
                fix="open a folder that `RetrievalPipeline.save_pretrained` wrote",
            )

        # The description decides what components are: diffusers' classes do not say it.
        info = ModelInfo.model_validate(described)
        config, place = info.generator, Path(str(self.config.get("_name_or_path") or "."))
        first_stage = None if self.vae is None else FirstStage(self.vae, "vae")
        # A pipeline may be cast to 16 bits; ours computes these where they pay, and keeps weights.
        unet = self.unet.float()
        kind = UnconditionalDenoiser if config.network.kind == "unconditional-unet" else Denoiser
        space = open_space(config.space, first_stage, config.network.sample_shape)
        generator = Generator(config, space, open_conditions(config), kind(unet))
        return Model(place, info, generator.to(self.unet.device).eval(), first_stage)
