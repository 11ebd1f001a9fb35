"""Options of a request: what `rdm sample` can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from rdm.cli.console import in_range
from rdm.errors import UsageError

if TYPE_CHECKING:
    from rdm.sampling.request.sample_request import Request

ValueT = TypeVar("ValueT")

Names = list[str] | None


def _many(help: str, name: str | None = None) -> Parameter:
    return Parameter(name=name, help=help, negative="")


@Parameter(name="*")
@dataclass(frozen=True)
class RequestOptions:
    """What is asked for; None: as the request's file has it, or by default."""

    model: Annotated[
        str | None, Parameter(help="assets://NAME, or a `model` folder that `rdm train` wrote")
    ] = None
    database: Annotated[
        Names,
        _many("where neighbors are looked up; several as DIR=WEIGHT each; an LDM needs none"),
    ] = None
    text: Annotated[Names, _many("query in words; any number of times")] = None
    image: Annotated[list[Path] | None, _many("query as a picture; any number of times")] = None
    class_: Annotated[
        Names,
        _many(
            "a class of the model, or where it reads neighbors any name, which is looked up by "
            "several prompts; any number of times",
            "--class",
        ),
    ] = None
    patch: Annotated[Names, _many("query as a patch of the database, by its id")] = None
    unconditional: Annotated[bool | None, Parameter(help="draw queries from p_D", negative="")] = (
        None
    )
    top_m: Annotated[
        float | None,
        Parameter(
            help="fraction of the likeliest patches that p_D keeps; 0.01 by default",
            validator=in_range(0, 1, excluding=0),
        ),
    ] = None
    centers: Annotated[
        int | None,
        Parameter(
            help="draw unconditional queries from so many cluster centers, not from p_D",
            validator=in_range(1),
        ),
    ] = None
    k: Annotated[
        int | None,
        Parameter(
            name=["-k", "--k"],
            help="neighbors that condition a sample, 4 by default; --set k",
            validator=in_range(1),
        ),
    ] = None
    pool: Annotated[
        int | None,
        Parameter(
            help="the nearest neighbors of which each seed draws its own k", validator=in_range(1)
        ),
    ] = None
    tokens: Annotated[
        Literal["neighbors", "query", "query+neighbors"] | None,
        Parameter(
            help="what conditions: the neighbors (default), the query's own embedding, or that "
            "and k - 1 neighbors"
        ),
    ] = None
    neighbor: Annotated[Names, _many("a patch that is one of the k")] = None
    weight: Annotated[Names, _many("PATCH=W: a neighbor's attention is multiplied by 0 to 4")] = (
        None
    )
    exclude_patch: Annotated[Names, _many("a patch that may not be found")] = None
    exclude_photograph: Annotated[Names, _many("an image id that may not be found")] = None
    exclude_author: Annotated[Names, _many("an author whose photographs may not be found")] = None
    exclude_license: Annotated[Names, _many("a license of photographs that may not be found")] = (
        None
    )
    negative: Annotated[Names, _many("a text that pictures are led away from")] = None
    negative_patch: Annotated[Names, _many("a patch that they are led away from")] = None
    negative_scale: Annotated[
        float | None,
        Parameter(help="how strongly; guidance less 1 by default", validator=in_range(0)),
    ] = None
    guidance: Annotated[
        float | None,
        Parameter(
            help="guidance scale s, 2 by default; 1: none; --set guidance_scale",
            validator=in_range(0),
        ),
    ] = None
    start: Annotated[
        Path | None, Parameter(help="a picture to change, in place of a start in noise")
    ] = None
    strength: Annotated[
        float | None,
        Parameter(
            help="how much of --start is changed, 0.8 by default and with --mask 1; 0: nothing",
            validator=in_range(0, 1),
        ),
    ] = None
    mask: Annotated[
        Path | None,
        Parameter(help="a picture of the size of --start: white is drawn anew, black is kept"),
    ] = None
    outpaint: Annotated[
        int | None,
        Parameter(
            help="shrink --start into the middle, with so many pixels on each side around it, and "
            "draw the rest",
            validator=in_range(0),
        ),
    ] = None
    invert: Annotated[
        bool | None,
        Parameter(
            help="start in the noise that draws --start under its own neighbors (DDIM inversion); "
            "without a query --start is the query, and this reconstructs it",
            negative="",
        ),
    ] = None
    towards_text: Annotated[
        str | None, Parameter(help="a text that the vector of each query is turned to")
    ] = None
    towards_image: Annotated[
        Path | None, Parameter(help="a picture that the vector of each query is turned to")
    ] = None
    away_text: Annotated[
        str | None,
        Parameter(help="turn along the difference of --towards-text from this text"),
    ] = None
    towards: Annotated[
        int | None,
        Parameter(help="a seed that the noise of each is turned to", validator=in_range(0)),
    ] = None
    fraction: Annotated[
        float | None,
        Parameter(
            help="of the turn, of the noise, the queries, or both; 0.5 by default",
            validator=in_range(0, 1),
        ),
    ] = None
    guidance_weight: Annotated[
        float | None,
        Parameter(help="w = s - 1 in place of s, as papers write it", validator=in_range(-1)),
    ] = None
    seeds: Annotated[
        str | None,
        Parameter(help="e.g. 0-7, the default, or 3,5,9; picture i depends on seed i only"),
    ] = None

    def request(self, file: Path | None, assignments: Sequence[str]) -> Request:
        """Return the request of a file, or the default one, with the options that are given.

        Args:
            file: JSON; None: there is none.
            assignments: `key=value` of its settings; they hold over options.

        Raises:
            UsageError: a value is not valid.
        """
        from rdm.sampling.request.sample_request import Request, read_request, request_of

        # Settings: the file's, then options, then assignments.
        base = Request() if file is None else read_request(file)
        settings = {"k": self.k, "guidance_scale": self._guidance_scale()}
        changed = base.settings.model_copy(update=_given(settings))

        data = {
            **base.model_dump(mode="json"),
            **_given(
                {
                    "model": self.model,
                    "texts": self.text,
                    "images": None if self.image is None else [str(path) for path in self.image],
                    "classes": self.class_,
                    "patches": self.patch,
                    "unconditional": self.unconditional,
                    "top_m": self.top_m,
                    "centers": self.centers,
                    "seeds": self.seeds,
                }
            ),
            "settings": changed.with_overrides(assignments).model_dump(mode="json"),
        }

        # Sections: an option changes its own field only.
        data["retrieval"] = self._retrieval(data["retrieval"])
        data["turn"] = self._turn(data["turn"])

        start = {
            "image": _text(self.start),
            "strength": self.strength,
            "mask": _text(self.mask),
            "outpaint": self.outpaint,
            "invert": self.invert,
            "towards": self.towards,
        }
        data["start"] = {**(data["start"] or {}), **_given(start)} or None

        # One --fraction for the noise, the queries, or both: whichever is turned.
        turns_noise = self.towards is not None or (data["start"] or {}).get("towards") is not None
        if self.fraction is not None and (turns_noise or data["turn"] is None):
            data["start"] = {**(data["start"] or {}), "fraction": self.fraction}

        if self.invert and self.start is not None:
            self._fill_inversion(data, assignments)
        return request_of(data, file or "rdm sample")

    def _turn(self, base: Mapping[str, Any] | None) -> dict[str, str | float] | None:
        """Return the turn of the queries with the options that are given; None: there is none."""
        changes = {
            "text": self.towards_text,
            "image": _text(self.towards_image),
            "away": self.away_text,
        }
        turn = {**(base or {}), **_given(changes)}
        if turn and self.fraction is not None:
            turn["fraction"] = self.fraction
        return turn or None

    def _fill_inversion(self, data: dict[str, Any], assignments: Sequence[str]) -> None:
        """Fill in what an inversion is drawn with where nothing is said: ddim without noise; and
        of a request without a query the picture itself as the query, without guidance, which
        together reconstruct it."""
        said = {one.partition("=")[0] for one in assignments}

        # Noise drawn on the way back would undo the inversion.
        settings = data["settings"]
        if settings["eta"] is None and settings["sampler"] == "ddim":
            settings["eta"] = 0.0

        asks = any(data[name] for name in ("texts", "images", "classes", "patches"))
        if not asks and not data["unconditional"] and not data["retrieval"]["include"]:
            data["images"] = [str(self.start)]
            if self._guidance_scale() is None and "guidance_scale" not in said:
                settings["guidance_scale"] = 1.0

    def _guidance_scale(self) -> float | None:
        """Return s of whichever convention is given."""
        from rdm.diffusion.guidance import scale_from_weight

        if self.guidance is not None and self.guidance_weight is not None:
            raise UsageError(
                "--guidance and --guidance-weight are both given", fix="one of them: s = 1 + w"
            )
        if self.guidance_weight is None:
            return self.guidance
        return scale_from_weight(self.guidance_weight)

    def _retrieval(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Return the retrieval's fields with the options that are given."""
        # None of an option that is not given, so that the file's value stays.
        databases, weights = None, None
        if self.database is not None:
            databases = [_weighted(text) for text in self.database]
        if self.weight is not None:
            weights = dict(_patch_weight(text) for text in self.weight)

        # Sections are filled field by field: what the file has beside an option stays.
        exclude = {
            "patches": self.exclude_patch,
            "photographs": self.exclude_photograph,
            "authors": self.exclude_author,
            "licenses": self.exclude_license,
        }
        negative = _given(
            {
                "texts": self.negative,
                "patches": self.negative_patch,
                "scale": self.negative_scale,
            }
        )

        changes = {
            "databases": databases,
            "pool": self.pool,
            "tokens": self.tokens,
            "include": self.neighbor,
            "weights": weights,
            "exclude": {**base["exclude"], **_given(exclude)},
            "negative": {**(base["negative"] or {}), **negative} or None,
        }
        return {**base, **_given(changes)}


def _given(values: Mapping[str, ValueT | None]) -> dict[str, ValueT]:
    return {name: value for name, value in values.items() if value is not None}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _weighted(text: str) -> dict[str, str | float]:
    """Return a database of `DIR` or `DIR=WEIGHT`; a folder with `=` in its name stays whole."""
    name, equals, number = text.rpartition("=")
    weight = _number(number)
    if not equals or weight is None or Path(text).exists():
        return {"name": text}
    return {"name": name, "weight": weight}


def _patch_weight(text: str) -> tuple[str, float]:
    patch, _, number = text.rpartition("=")
    weight = _number(number)
    if not patch or weight is None:
        raise UsageError(
            f"{text!r} is no weight of a patch", where="--weight", fix="write --weight 77=2"
        )
    return patch, weight


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
