"""A query between two queries, or turned along the difference of two texts.

References: [R] Ramesh et al. 2022, sections 3.2 (interpolations) and 3.3 (text differences).
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from rdm.config import Config, Record

MAX_TEXT = 2000  # characters; records keep as many


def _checked_text(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty: say what to draw, or ask for unconditional pictures")
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"the text has {len(text):,} characters, at most {MAX_TEXT:,} are read: shorten it"
        )
    return text


Text = Annotated[str, AfterValidator(_checked_text)]


class QueryTurn(Config):
    """What the vector of each query is turned to, along a great circle. [R]"""

    text: Text | None = Field(default=None, description="turn to this text")
    image: str | None = Field(default=None, description="or to this picture, a file")
    away: Text | None = Field(
        default=None,
        description="turn along the difference of the text from this one, not to the text itself",
    )
    fraction: float = Field(
        default=0.5, ge=0, le=1, description="of the turn; differences take up to a half"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.away is not None and self.text is None:
            raise ValueError(
                "a difference has two texts: give the one to turn to (--towards-text) with the one "
                "to turn away from (--away-text)"
            )
        if (self.text is None) == (self.image is None):
            raise ValueError(
                "a query is turned to one text or one picture: give --towards-text or "
                "--towards-image"
            )
        return self


class TurnRecord(Record):
    """A query's turn, in the record of a picture and in the identity of its request."""

    text: str | None = None
    image: str | None = Field(default=None, description="the file's name")
    image_sha256: str = Field(default="", description="of that picture's pixels, upright RGB")
    away: str | None = None
    fraction: float

    def __str__(self) -> str:
        """Return the turn in words."""
        away = "" if self.away is None else f" and away from {self.away}"
        return f"turned {self.fraction:g} towards {self.text or self.image}{away}"
