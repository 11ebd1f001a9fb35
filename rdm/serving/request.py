"""What clients ask for: a query, where to look it up, how to draw."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rdm.config import Config
from rdm.generators.sample_settings import SampleSettings

MAX_SEED = 2**53 - 1  # a number of JavaScript keeps every digit
MAX_K = 32
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
PatchId = Annotated[int, Field(ge=0, le=2**62)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Unconditional(Config):
    """A patch drawn from p_D: how often the database's patches are neighbors of the query set."""

    top_m: float = Field(default=0.05, gt=0, le=1, description="share of the likeliest patches")


class AskedQuery(Config):
    """What is asked for, in exactly one of the ways."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None = None
    image: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="an upload's id"
    )
    patch: PatchId | None = Field(default=None, description="a patch of the database")
    unconditional: Unconditional | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a query is one of text, image, patch, unconditional; given: "
                f"{', '.join(given) or 'none'}"
            )
        if self.text is not None and not self.text.strip():
            raise ValueError("the text is empty")
        return self

    @property
    def label(self) -> str:
        """The query in a few words."""
        if self.text is not None:
            return self.text
        if self.patch is not None:
            return f"patch {self.patch}"
        return "a picture" if self.image is not None else "a surprise"


class Excluded(Config):
    """What must not condition a picture."""

    patches: Annotated[tuple[PatchId, ...], Field(max_length=1000)] = ()
    photographs: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=200)], ...], Field(max_length=1000)
    ] = ()


class Retrieval(Config):
    """Where and how neighbors are looked up."""

    database: Name | None = Field(default=None, description="None: the first that fits the model")
    k: int = Field(default=4, ge=1, le=MAX_K)
    exclude: Excluded = Excluded()


class Sampler(Config):
    """How pictures are drawn."""

    num_inference_steps: int = Field(default=30, ge=1)
    guidance_scale: float = Field(default=2.5, ge=0, le=50)
    guidance_interval: tuple[float, float] | None = Field(
        default=(-3.0, 3.0), description="log-SNRs between which guidance acts"
    )
    eta: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        interval = self.guidance_interval
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError("guidance_interval: the lower log-SNR comes first, as in [-3, 3]")
        return self


class Output(Config):
    """What a job tells while it draws."""

    preview: Literal["off", "decoded"] = "decoded"


class NeighborsRequest(Config):
    """A look-up without a picture."""

    model: Name | None = Field(default=None, description="None: the first")
    query: AskedQuery
    retrieval: Retrieval = Retrieval()
    seed: Seed = Field(default=0, description="of an unconditional query")


class JobRequest(Config):
    """Pictures to draw, one for each seed."""

    model: Name | None = Field(default=None, description="None: the first")
    query: AskedQuery
    retrieval: Retrieval = Retrieval()
    sampler: Sampler = Sampler()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=256)] = (0,)
    output: Output = Output()
    client_tag: Annotated[str, StringConstraints(max_length=100)] = ""
    supersede: bool = Field(
        default=False,
        description="a draft: it takes the place of this client's earlier draft of the same tag, "
        "and is not kept in the history",
    )

    def settings(self, batch_size: int) -> SampleSettings:
        """Return the settings of a batch that is drawn for the request."""
        sampler = self.sampler
        return SampleSettings(
            k=self.retrieval.k,
            guidance_scale=sampler.guidance_scale,
            guidance_interval=sampler.guidance_interval,
            num_steps=sampler.num_inference_steps,
            eta=sampler.eta,
            batch_size=batch_size,
        )
