"""A start other than noise of the seeds: a picture to change, parts of it to keep, mixed noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from rdm.config import Config, Record
from rdm.errors import SourceError
from rdm.sampling.picture_digest import pixels_digest
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
    outpaint: int | None = Field(
        default=None,
        ge=0,
        description="the whole picture is shrunk into the middle of what the model draws, with "
        "so many pixels of that on each side around it, and the rest is drawn",
    )
    invert: bool = Field(
        default=False,
        description="start in the noise that DDIM would draw the image from under its own "
        "neighbors, in place of the seed's",
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
        words = {"strength": "a strength", "mask": "a mask", "outpaint": "a margin to outpaint"}
        given = [name for name in words if getattr(self, name) is not None]

        # Without a picture only noise can be mixed.
        if self.image is None and (given or self.invert):
            needing = words[given[0]] if given else "an inversion"
            raise ValueError(f"{needing} needs the picture to start from: give --start IMAGE")

        # Two answers to one question would be decided by the order of our own code.
        if self.mask is not None and self.outpaint is not None:
            raise ValueError(
                "a mask and a margin to outpaint both say what is drawn anew: give one of them"
            )
        if self.invert and given:
            raise ValueError(
                f"an inverted picture is drawn whole, so {words[given[0]]} says nothing: leave it "
                "or --invert out"
            )

        # One half may have been filled in where a recipe had none: it says nothing.
        if "fraction" in self.model_fields_set and self.towards is None and self.fraction != 0.5:
            raise ValueError("a fraction needs the seed that noise is turned to: give --towards")
        if self.image is None and self.towards is None:
            raise ValueError("a start names a picture, or a seed that noise is turned to")
        return self

    @property
    def acting_strength(self) -> float | None:
        """The strength with its default in place of None; None without a picture."""
        if self.image is None or self.strength is not None or self.invert:
            return self.strength
        keeps_parts = self.mask is not None or self.outpaint is not None
        return STRENGTH_WITH_MASK if keeps_parts else STRENGTH

    def record(self, pictures: Mapping[str, Image.Image] = MappingProxyType({})) -> StartRecord:
        """Return what identifies the start, without the places where things lie.

        Args:
            pictures: open ones by their names in the request; the others are files.
        """
        image, mask = (pictures.get(one or "") for one in (self.image, self.mask))
        return StartRecord(
            image=self.image and PurePath(self.image).name,
            image_sha256=None if image or not self.image else _digest_of(self.image),
            mask_sha256=None if mask or not self.mask else _digest_of(self.mask),
            image_pixels_sha256=image and pixels_digest(np.asarray(image)),
            mask_pixels_sha256=mask and pixels_digest(np.asarray(mask)),
            outpaint=self.outpaint,
            invert=self.invert,
            strength=self.acting_strength,
            towards=self.towards,
            fraction=None if self.towards is None else self.fraction,
        )


class StartRecord(Record):
    """The start of a picture, in its record and in the identity of its request."""

    image: str | None = Field(default=None, description="the file's name")
    image_sha256: str | None = None
    mask_sha256: str | None = None
    image_pixels_sha256: str | None = Field(
        default=None, description="of the pixels, RGB, of a picture that was given open, no file"
    )
    mask_pixels_sha256: str | None = None
    outpaint: int | None = None
    invert: bool = False
    strength: float | None = None
    towards: int | None = None
    fraction: float | None = None

    @property
    def has_picture(self) -> bool:
        """Whether drawing started from a picture of the user."""
        return self.image_sha256 is not None or self.image_pixels_sha256 is not None


def _digest_of(path: str) -> str:
    try:
        return sha256_file(Path(path))
    except OSError as error:
        raise SourceError(
            f"the picture cannot be read: {error.strerror}",
            where=path,
            fix="check --start and --mask",
        ) from error
