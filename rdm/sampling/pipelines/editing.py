"""Editing with a pipeline: pictures that are changed, filled in, extended, mixed and inverted.

Each method is one call, so that a request and a record describe what it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rdm.database import RetrievalDatabase
from rdm.generators.model_folder import Model
from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.drawing.draw import inverted
from rdm.sampling.drawing.start import open_start
from rdm.sampling.pipelines.call_arguments import PictureName, opened_picture, start_of
from rdm.sampling.recipe.picture_file import read_picture
from rdm.sampling.recipe.reproduction import Reproduction
from rdm.sampling.reproduce import Given
from rdm.sampling.reproduce import reproduce as draw_again
from rdm.sampling.request.sample_request import Request
from rdm.sampling.retrieval.look_up import LookUp


class Drawing(Protocol):
    """What edits: a pipeline that draws a request, of a model and of databases by their names."""

    model: Model
    databases: dict[str, RetrievalDatabase]

    def __call__(self, *arguments: Any, **call: Any) -> Any:
        """Draw pictures: see `RetrievalPipeline`, which has the functions here as its methods.

        `call` are further arguments of it, such as `seeds`, `k` or `num_inference_steps`.
        """
        ...


def variations(pipe: Drawing, image: PictureName, **call: Any) -> Any:
    """Draw pictures from the neighbors of a picture, one for each seed."""
    return pipe(image=image, **call)


def interpolate(
    pipe: Drawing,
    first: str | PictureName,
    second: str | PictureName,
    fractions: Sequence[float],
    **call: Any,
) -> list[Any]:
    """Draw pictures between two queries, and return the output of each fraction.

    Args:
        first: at fraction 0: a text, or a picture (an open one, or a `Path`).
        second: at fraction 1, likewise.
        fractions: in [0, 1].
        call: further arguments; `start={"towards": 2}` turns the noise to that of seed 2 by the
            same fractions.
    """
    query = {"prompt": first} if isinstance(first, str) else {"image": first}
    towards = {"text": second} if isinstance(second, str) else {"image": second}
    start = dict(call.pop("start", None) or {})
    outputs = []
    for fraction in fractions:
        turned = {**start, "fraction": fraction} if "towards" in start else start
        turn = {**towards, "fraction": fraction}
        outputs.append(pipe(**query, turn=turn, start=turned or None, **call))
    return outputs


def text_difference(
    pipe: Drawing, image: PictureName, towards: str, away: str, fraction: float = 0.3, **call: Any
) -> Any:
    """Draw pictures from a picture's query, turned along the difference of two texts.

    Args:
        image: the query.
        towards: a text that says what is to be more.
        away: a text that says what is to be less.
        fraction: of the turn, up to a half.
        call: further arguments.
    """
    return pipe(image=image, turn={"text": towards, "away": away, "fraction": fraction}, **call)


def inpaint(
    pipe: Drawing, prompt: str | None, image: PictureName, mask_image: PictureName, **call: Any
) -> Any:
    """Draw anew what is white in a mask of a picture; what is black is kept to the last bit."""
    return pipe(prompt, image=image, mask_image=mask_image, **call)


def outpaint(
    pipe: Drawing, prompt: str | None, image: PictureName, margin: int, **call: Any
) -> Any:
    """Draw what is around a picture, which is shrunk into the middle of what the model draws.

    Args:
        prompt: query in words; None: the picture itself is the query.
        image: the picture.
        margin: pixels around it on each side.
        call: further arguments.
    """
    return pipe(prompt, start={"image": image, "outpaint": margin}, **call)


def reconstruct(pipe: Drawing, image: PictureName, **call: Any) -> Any:
    """Invert a picture under its own neighbors, and draw it again from that noise.

    Without guidance; the distance from the picture is the error of the inversion, which falls
    as one over the steps, and what the first stage loses.
    """
    call = {"guidance_scale": 1.0, **call}
    return pipe(start={"image": image, "invert": True}, **call)


def invert(
    pipe: Drawing, image: PictureName, k: int | None = None, num_inference_steps: int | None = None
) -> Tensor:
    """Return the noise [1, ...] that DDIM draws a picture from under its own neighbors.

    Args:
        image: the picture.
        k: of the neighbors.
        num_inference_steps: of DDIM.
    """
    pictures: dict[str, Image.Image] = {}
    start = start_of({"image": image, "invert": True}, (), None, None, pictures)
    assert start is not None

    # Without noise of its own: DDIM has an inverse only where eta is 0.
    given = {"k": k, "num_steps": num_inference_steps}
    chosen = {name: one for name, one in given.items() if one is not None}
    settings = SampleSettings.model_validate({**chosen, "eta": 0.0})
    assert start.image is not None

    # The picture is its own query: its neighbors explain it best.
    request = Request(
        images=(start.image,) if pipe.model.reads_neighbors else (),
        unconditional=not pipe.model.reads_neighbors,
        seeds="0",
        start=start,
        settings=settings,
    )

    looked_up = LookUp(
        request, pipe.model.info, pipe.databases, open_image=opened_picture(pictures)
    )
    opened = open_start(start, pipe.model, pictures)
    return inverted(pipe.model, looked_up.rows(0, 1), settings, opened)


def reproduce(
    pipe: Drawing, path: str | Path, given: Given | None = None
) -> tuple[NDArray[np.uint8], Reproduction]:
    """Draw a picture again from the recipe that its file carries: see `rdm.sampling.reproduce`.

    Args:
        path: the PNG.
        given: the pictures that the recipe has only the digest of.
    """
    databases = list(pipe.databases.values())
    return draw_again(read_picture(Path(path)), pipe.model, databases, given or Given())
