"""Arguments of a pipeline's call, as a request has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from rdm.diffusion.guidance import scale_from_weight
from rdm.errors import UsageError
from rdm.sampling.request.query_turn import QueryTurn
from rdm.sampling.request.sample_request import NegativeRequest, WeightedDatabase, part_of
from rdm.sampling.request.seeds import format_seeds
from rdm.sampling.request.start_request import StartRequest
from rdm.sampling.retrieval.queries import load_query_image

PictureName: TypeAlias = str | Path | Image.Image

CALLED = "RetrievalPipeline"
"""Where errors say that arguments are from."""


def several(value: Any) -> list[Any]:
    """Return a value, or several, as a list; none of None."""
    if value is None:
        return []
    return [value] if isinstance(value, (str, int, Path, Image.Image)) else list(value)


def named_picture(picture: PictureName, pictures: dict[str, Image.Image]) -> str:
    """Return a picture's name in the request; one that is open is kept by it."""
    if isinstance(picture, Image.Image):
        name = f"picture {len(pictures)}"
        pictures[name] = picture
    else:
        name = str(picture)
        pictures[name] = load_query_image(Path(name))
    return name


def opened_picture(pictures: Mapping[str, Image.Image]) -> Callable[[str], Image.Image]:
    """Return a function that returns pictures by their names: open ones, and those of files."""

    def open_image(name: str) -> Image.Image:
        opened = pictures.get(name)
        return load_query_image(Path(name)) if opened is None else opened

    return open_image


def kept_open(picture: PictureName, pictures: dict[str, Image.Image]) -> str:
    """Return a picture's name in the request; one that is open is kept by it, and no file is."""
    # A file is recorded by its own digest, which `pictures` would hide.
    return named_picture(picture, pictures) if isinstance(picture, Image.Image) else str(picture)


def start_of(
    start: Mapping[str, Any] | None,
    images: Sequence[PictureName],
    strength: float | None,
    mask: PictureName | None,
    pictures: dict[str, Image.Image],
) -> StartRequest | None:
    """Return the request's start; None: there is none.

    Raises:
        UsageError: there are several pictures, or one, its strength or its mask is given twice;
            a field is not known, or its value is not valid.
    """
    if len(images) > 1:
        raise UsageError(
            f"{len(images)} pictures are given with a strength or a mask, which change one",
            where="image",
            fix="one picture a call",
        )

    # diffusers' own arguments, beside those of the start: either may say a thing, not both.
    image = images[0] if images else None
    given = {"image": image, "strength": strength, "mask": mask}
    given = {name: value for name, value in given.items() if value is not None}
    if twice := [name for name in given if name in (start or {})]:
        raise UsageError(
            f"the start's {twice[0]} is given twice", where="start", fix="give it once"
        )

    # Open pictures have no file: they are named, and kept by the name.
    asked = {**(start or {}), **given}
    for name in ("image", "mask"):
        if asked.get(name) is not None:
            asked[name] = kept_open(asked[name], pictures)
    return part_of(StartRequest, asked, CALLED, "start") if asked else None


def turn_of(turn: Mapping[str, Any] | None, pictures: dict[str, Image.Image]) -> QueryTurn | None:
    """Return the request's turn; None: there is none.

    Raises:
        UsageError: a field is not known, or its value is not valid.
    """
    if turn is None:
        return None
    image = turn.get("image")
    asked = turn if image is None else {**turn, "image": kept_open(image, pictures)}
    return part_of(QueryTurn, asked, CALLED, "turn")


def scale_of(scale: float | None, weight: float | None) -> float | None:
    """Return the guidance scale s of either convention.

    Raises:
        UsageError: both are given.
    """
    if scale is not None and weight is not None:
        raise UsageError(
            "guidance_scale and guidance_weight are both given",
            where="guidance_weight",
            fix="one of them: s = 1 + w",
        )
    return scale if weight is None else scale_from_weight(weight)


def negative_of(
    texts: str | Sequence[str] | None, patches: Sequence[int | str], scale: float | None
) -> NegativeRequest | None:
    """Return the request's negative; None: there is none.

    Raises:
        UsageError: a value is not valid.
    """
    if not texts and not patches and scale is None:
        return None
    asked = {"texts": several(texts), "patches": list(patches), "scale": scale}
    return part_of(NegativeRequest, asked, CALLED, "retrieval.negative")


def weighted(weights: Mapping[str, float] | None) -> list[WeightedDatabase]:
    """Return the request's databases of their weights by name.

    Raises:
        UsageError: a value is not valid.
    """
    return [
        part_of(
            WeightedDatabase,
            {"name": name, "weight": weight},
            CALLED,
            f"retrieval.databases.{place}",
        )
        for place, (name, weight) in enumerate((weights or {}).items())
    ]


def seeds_of(
    seeds: str | int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
) -> str:
    """Return the seeds of a call as a request has them.

    Raises:
        UsageError: seeds and generators are both given, or a generator has drawn already.
    """
    if seeds is not None and generator is not None:
        raise UsageError(
            "seeds and generators are both given", where="generator", fix="one of the two"
        )
    if isinstance(seeds, str):
        return seeds
    if seeds is not None:
        return format_seeds([seeds] if isinstance(seeds, int) else list(seeds))
    if generator is None:
        return format_seeds(range(count))
    if not isinstance(generator, torch.Generator):
        return format_seeds([_seed_of(one) for one in generator])
    first = _seed_of(generator)
    return format_seeds(range(first, first + count))


def _seed_of(generator: torch.Generator) -> int:
    seed = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(seed)
    # A picture must be drawn again from what its record says, and a state cannot be written there.
    if not torch.equal(fresh.get_state(), generator.get_state()):
        raise UsageError(
            "the generator has drawn numbers already, and its state cannot be written down",
            where="generator",
            fix=f"a fresh one: torch.Generator().manual_seed({seed}); or seeds=[{seed}]",
        )
    return seed
