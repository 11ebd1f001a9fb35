"""What clients ask for: the request of `rdm sample`, of one query, and how a job is treated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.request.sample_request import Request
from rdm.sampling.request.seeds import checked_seeds, parse_seeds, seeds_text

MAX_K = 32
_UPLOAD = re.compile(r"[0-9a-f]{64}")


class JobSettings(SampleSettings):
    """How pictures are drawn; the defaults are quicker than those of `rdm sample`."""

    k: int = Field(default=4, ge=1, le=MAX_K, description="neighbors that condition a picture")
    num_steps: int = Field(default=30, ge=1, description="diffusion: steps of the sampler")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's eta; 0 is deterministic")
    guidance_scale: float = Field(default=3.0, ge=0, le=50, description="1: no guidance")
    guidance_interval: tuple[float, float] | None = Field(
        default=(-5.0, 2.0), description="log-SNRs between which guidance acts; None: all"
    )


class LookUpRequest(Request):
    """A request of one query; images are uploads' ids, databases and models the server's names."""

    settings: JobSettings = JobSettings()
    seeds: Annotated[str, BeforeValidator(seeds_text), AfterValidator(checked_seeds)] = Field(
        default="0", description="such as 0-3, 3,5,9 or [7, 8]"
    )

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        queries = (*self.texts, *self.images, *self.classes, *self.patches)
        # Neighbors that are all chosen by hand stand in for a query.
        by_hand = bool(self.retrieval.include) and not queries and not self.unconditional
        if len(queries) + self.unconditional + by_hand != 1:
            raise ValueError(
                "one text, image, class or patch, or unconditional: "
                f"{len(queries) + self.unconditional} are asked for"
            )

        # What only the command line can do.
        if self.start is not None:
            raise ValueError("start: pictures are changed by `rdm sample`, not by a server yet")
        if self.turn is not None:
            raise ValueError("turn: queries are turned by `rdm sample`, not by a server yet")
        if self.settings.autoguidance is not None:
            raise ValueError("autoguidance: a client names no folder of the server's machine")

        # Pictures come by upload: a path would be one of the server's.
        if self.images and not _UPLOAD.fullmatch(self.images[0]):
            raise ValueError("images: give the id that POST /v1/uploads returned")
        return self

    @property
    def seed_list(self) -> Sequence[int]:
        """The seeds, one of each picture."""
        return parse_seeds(self.seeds)


class JobRequest(LookUpRequest):
    """Pictures to draw, one for each seed."""

    preview: Literal["off", "decoded"] = Field(
        default="decoded", description="pictures on the way, as events"
    )
    client_tag: Annotated[str, StringConstraints(max_length=100)] = ""
    supersede: bool = Field(
        default=False,
        description="a draft: it takes the place of this client's earlier draft of the same tag, "
        "and is not kept in the history",
    )
