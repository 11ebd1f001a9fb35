"""A start other than noise of the seeds: a picture to change, parts of it to keep, mixed noise."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Self

from pydantic import Field, model_validator

from rdm.config import Config, Record
from rdm.storage import sha256_file

MAX_SEED = 2**63 - 1
STRENGTH = 0.8  # as diffusers has it
STRENGTH_WITH_MASK = 1.0  # what a mask hides is nothing to start from


class StartRequest(Config):
    """What drawing starts from; what is left out is as without it."""

    image: str | None = Field(default=None, description="a picture file to change")
    strength: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the steps that change it: 0 returns it, 1 all but forgets it; "
        f"None: {STRENGTH}, with a mask {STRENGTH_WITH_MASK:g}",
    )
    mask: str | None = Field(
        default=None,
        description="a picture file of the image's size: white is drawn anew, black is kept",
    )
    towards: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="a seed whose noise each picture's own is turned to",
    )
    fraction: float = Field(default=0.5, ge=0, le=1, description="of the turn towards it")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("strength", "mask"):
            if getattr(self, name) is not None and self.image is None:
                raise ValueError(f"a {name} needs the picture to start from: give --start IMAGE")
        if "fraction" in self.model_fields_set and self.towards is None and self.fraction != 0.5:
            raise ValueError("a fraction needs the seed that noise is turned to: give --towards")
        if self.image is None and self.towards is None:
            raise ValueError("a start names a picture, or a seed that noise is turned to")
        return self

    @property
    def acting_strength(self) -> float | None:
        """The strength with its default in place of None; None without a picture."""
        if self.image is None or self.strength is not None:
            return self.strength
        return STRENGTH if self.mask is None else STRENGTH_WITH_MASK

    def record(self) -> StartRecord:
        """Return what identifies the start, without the places where things lie."""
        return StartRecord(
            image=self.image and PurePath(self.image).name,
            image_sha256=self.image and sha256_file(Path(self.image)),
            mask_sha256=self.mask and sha256_file(Path(self.mask)),
            strength=self.acting_strength,
            towards=self.towards,
            fraction=None if self.towards is None else self.fraction,
        )


class StartRecord(Record):
    """The start of a picture, in its record and in the identity of its request."""

    image: str | None = Field(default=None, description="the file's name")
    image_sha256: str | None = None
    mask_sha256: str | None = None
    strength: float | None = None
    towards: int | None = None
    fraction: float | None = None
