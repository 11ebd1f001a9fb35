"""The request: everything that decides pictures, for command line, flow, server, link and record.

One frozen model. Its fields are only added to; a field that is not known is refused by its name, so
that a request of a later release is never drawn as something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from rdm.config import Config
from rdm.errors import UsageError
from rdm.generators.sample_settings import SampleSettings, Setting
from rdm.sampling.request.query_turn import QueryTurn, Text, TurnRecord
from rdm.sampling.request.seeds import checked_seeds, seeds_text
from rdm.sampling.request.start_request import StartRecord, StartRequest

QueryKind = Literal["text", "image", "class", "patch", "neighbors", "unconditional"]

_Part = TypeVar("_Part", bound=Config)

FORMAT = "rdm.request/1"
MAX_WEIGHT = 4.0


def _patch_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _checked_patch(text: str) -> str:
    name, colon, number = text.rpartition(":")
    # 18 digits fit into int64; isdigit alone would let other scripts' digits pass.
    if not (number.isascii() and number.isdigit() and len(number) <= 18) or bool(colon) != bool(
        name
    ):
        raise ValueError(f"{text!r} is no patch: write its id, as 77, or DATABASE:77")
    return text


Patch = Annotated[str, BeforeValidator(_patch_text), AfterValidator(_checked_patch)]
"""A patch's id; with its database's name before it, `birds:77`, where that is not the first."""


class WeightedDatabase(Config):
    """One of the databases that neighbors are looked up in."""

    name: str = Field(min_length=1, description="a folder, or a name that a server gave it")
    weight: float = Field(
        default=1.0, ge=0, le=1e6, allow_inf_nan=False, description="its share of the neighbors"
    )
    version: int | None = Field(default=None, ge=1, description="a pinned one; None: the current")


class Exclusions(Config):
    """What no look-up may find."""

    patches: tuple[Patch, ...] = ()
    photographs: tuple[str, ...] = Field(default=(), description="image ids")
    authors: tuple[str, ...] = ()
    licenses: tuple[str, ...] = Field(default=(), description="as records have them, whole")


class NegativeRequest(Config):
    """What pictures are led away from, e = (1 - s + n) e_u + s e_c - n e_n."""

    texts: tuple[Text, ...] = Field(default=(), description="each is looked up as a query is")
    patches: tuple[Patch, ...] = Field(default=(), description="these themselves")
    scale: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="n; None: s - 1, so that the negative takes the place of nothing, e_u",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.texts and not self.patches:
            raise ValueError("a negative names texts or patches")
        return self


class Retrieval(Config):
    """What conditions a picture: which neighbors, of which databases, with which weights."""

    databases: tuple[WeightedDatabase, ...] = Field(
        default=(), description="none: the first of those that are open"
    )
    pool: int | None = Field(
        default=None,
        ge=1,
        description="the nearest l neighbors, of which each seed draws its own k; None: k",
    )
    tokens: Literal["neighbors", "query", "query+neighbors"] = Field(
        default="neighbors",
        description="the k nearest, the query's own embedding alone, or that and the k - 1 nearest",
    )
    include: tuple[Patch, ...] = Field(
        default=(), description="neighbors by hand; they count among the k"
    )
    exclude: Exclusions = Exclusions()
    weights: dict[Patch, Annotated[float, Field(ge=0, le=MAX_WEIGHT)]] = Field(
        default_factory=dict,
        description="factors on the attention of neighbors, wherever they are found; 0 removes, "
        "2 is as if given twice",
    )
    negative: NegativeRequest | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [one.name for one in self.databases]
        if len(set(names)) < len(names):
            raise ValueError("a database is named twice: give it one weight")
        if self.databases and not any(one.weight for one in self.databases):
            raise ValueError("the weights of all databases are 0: give one of them some")
        if len(set(self.include)) < len(self.include):
            raise ValueError("a patch is included twice: give it a weight of 2 instead")
        return self


class Request(Config):
    """Pictures to draw: each text, image, class and patch with every seed, then a patch of the
    proposal distribution for each seed. Neighbors by hand need no query beside them."""

    format: Literal["rdm.request/1"] = FORMAT
    model: str | None = Field(default=None, description="a folder, or a name that a server gave it")
    texts: tuple[Text, ...] = ()
    images: tuple[str, ...] = Field(default=(), description="picture files, or a server's uploads")
    classes: tuple[Text, ...] = Field(
        default=(),
        description="names: those that the model was trained on, or where it reads neighbors any, "
        "looked up by an ensemble of prompts",
    )
    patches: tuple[Patch, ...] = Field(default=(), description="patches whose neighbors are asked")
    unconditional: bool = False
    top_m: float = Field(
        default=0.01, gt=0, le=1, description="share of the likeliest patches that p_D keeps"
    )
    centers: int | None = Field(
        default=None,
        ge=1,
        description="unconditional: draw the patches nearest to so many cluster centers of the "
        "database, each as often, in place of p_D",
    )
    turn: QueryTurn | None = Field(
        default=None, description="each text, image and class is turned to another query"
    )
    retrieval: Retrieval = Retrieval()
    start: StartRequest | None = Field(
        default=None, description="a picture to change, or noise between two seeds"
    )
    seeds: Annotated[str, BeforeValidator(seeds_text), AfterValidator(checked_seeds)] = Field(
        default="0-7", description="such as 0-7 or 3,5,9; picture i depends on its query and seed"
    )
    settings: SampleSettings = SampleSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        k, retrieval = self.settings.k, self.retrieval
        if retrieval.pool is not None and retrieval.pool < k:
            raise ValueError(f"a pool of {retrieval.pool} neighbors is smaller than k = {k}")

        negative = retrieval.negative
        if negative is not None and negative.scale is None and self.settings.guidance_scale == 1:
            raise ValueError(
                "a negative acts through guidance, and guidance_scale 1 is none: set another, or "
                "the negative's own scale"
            )

        # A turn goes between two embeddings, which these kinds do not have.
        unturned = self.kinds & {"patch", "neighbors", "unconditional"}
        if self.turn is not None and (unturned or not self.kinds):
            raise ValueError(
                f"a query that is turned is a text, an image or a class, not "
                f"{min(unturned, default='nothing')}: ask for that alone, or leave the turn out"
            )

        # Any other sampler, or noise, would not come back to the picture.
        is_inverted = self.start is not None and self.start.invert
        if is_inverted and (self.settings.sampler != "ddim" or self.settings.eta != 0):
            raise ValueError(
                "an inverted picture is drawn by ddim without noise: set sampler=ddim and eta=0"
            )
        return self

    @property
    def kinds(self) -> set[QueryKind]:
        """What is asked for."""
        asked: dict[QueryKind, bool] = {
            "text": bool(self.texts),
            "image": bool(self.images),
            "class": bool(self.classes),
            "patch": bool(self.patches),
            "unconditional": self.unconditional,
        }
        if self.retrieval.include and not any(asked.values()):
            return {"neighbors"}
        return {kind for kind, is_asked in asked.items() if is_asked}


class RequestIdentity(Config):
    """What decides the pictures of a request, without the places where things lie."""

    texts: tuple[str, ...]
    images: tuple[str, ...] = Field(description="SHA-256 of each query picture's file")
    classes: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    unconditional: bool
    top_m: float | None
    centers: int | None = None
    turn: TurnRecord | None = None
    retrieval: Retrieval | None = Field(default=None, description="of which databases: below")
    start: StartRecord | None = None
    seeds: str
    settings: dict[str, Setting]
    model: str
    database: str | None
    metadata: str = Field(default="full", description="what the PNGs carry")
    attribution: tuple[str, ...] = Field(default=(), description="what records say of tokens")
    signed: bool = Field(default=False, description="whether the PNGs are signed")

    def differing(self, other: RequestIdentity) -> list[str]:
        """Return the names of the fields that differ from another identity's."""
        return [
            name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)
        ]


def request_of(data: Mapping[str, Any], where: object = "") -> Request:
    """Return a request from values as JSON has them.

    Args:
        data: of its fields; what is left out has its default.
        where: the file or option that they are from, for the error.

    Raises:
        UsageError: a field is not known, or its value is not valid; it is named.
    """
    # The format first: of another one, fields would be refused for the wrong reason.
    found = data.get("format", FORMAT)
    if found != FORMAT:
        raise UsageError(
            f"the request has the format {found!r}, this release reads {FORMAT}",
            where=where,
            fix="draw it with the release that wrote it, or a later one",
        )

    return part_of(Request, data, where)


def part_of(kind: type[_Part], data: Mapping[str, Any], where: object, at: str = "") -> _Part:
    """Return a request, or a part of one, from values as JSON has them.

    Args:
        kind: of the part.
        data: of its fields.
        where: the file or option that they are from, for the error.
        at: the part's place in the request; none: it is the whole.

    Raises:
        UsageError: a field is not known, or its value is not valid; it is named.
    """
    # One error at a time, in a user's words and not pydantic's.
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in (at, *first["loc"]) if part != "")
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"a request has no field {field!r}",
                where=where,
                fix="mend its name; a request of a later release needs that release",
            ) from error
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(
            f"{field}: {message}" if field else message,
            where=where,
            fix=f"mend {field}" if field else "change one of the two",
        ) from error


def read_request(path: Path) -> Request:
    """Return the request in a JSON file.

    Raises:
        UsageError: the file cannot be read, is no JSON object, or its request is not valid.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("the request cannot be read", where=path, fix="check --request") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise UsageError(
            f"the request is not JSON: {error}", where=path, fix="mend the file"
        ) from error
    if not isinstance(data, dict):
        raise UsageError("the request is no JSON object", where=path, fix="write {...}")
    return request_of(data, path)
