"""One pipeline for Python: diffusers' names in a call, a request and the shared functions behind.

`rdm sample`, the flow and the server ask the same functions: `look_up` and `draw`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdm.compute.device import DeviceName, compute_device
from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.model_folder import Model, open_model
from rdm.generators.sample_settings import DrawStep
from rdm.models.precision import precision_of
from rdm.sampling.drawing.pipeline import Sample
from rdm.sampling.pipelines import editing
from rdm.sampling.pipelines.call_arguments import (
    CALLED,
    PictureName,
    named_picture,
    negative_of,
    opened_picture,
    scale_of,
    seeds_of,
    several,
    start_of,
    turn_of,
    weighted,
)
from rdm.sampling.pipelines.call_output import OutputType, RetrievalPipelineOutput, as_type
from rdm.sampling.pipelines.default_database import open_default_database
from rdm.sampling.request.sample_request import Request, request_of
from rdm.sampling.request_drawing import RequestDrawing
from rdm.sampling.retrieval.conditioning import Conditioning
from rdm.sampling.retrieval.look_up import LookUp

Databases: TypeAlias = str | Path | RetrievalDatabase | Mapping[str, RetrievalDatabase]
Callback: TypeAlias = Callable[["RetrievalPipeline", int, None, dict[str, Tensor]], object]
"""diffusers' `callback_on_step_end(pipe, step, timestep, tensors)`; the timestep is None, because
samplers have none in common."""


class _Interrupted(Exception):
    """Ends the batch in work."""


class RetrievalPipeline:
    """Draws pictures from a model and databases, and edits them by the functions of `editing`.

    Not to be called from several threads at once: `interrupt` belongs to one call.

    Attributes:
        model: draws.
        databases: where neighbors are looked up, by name; the first where a call names none.
        interrupt: set it in a callback, and the call returns the batches that are done.
    """

    variations = editing.variations
    interpolate = editing.interpolate
    text_difference = editing.text_difference
    inpaint = editing.inpaint
    outpaint = editing.outpaint
    reconstruct = editing.reconstruct
    invert = editing.invert
    reproduce = editing.reproduce

    def __init__(self, model: Model, database: Databases | None = None) -> None:
        """Put a model and databases together; `database` is a folder, an open one, or several.

        Raises:
            DatabaseError: there is no database in the folder.
            EncoderMismatchError: a database does not belong to the model's encoder.
        """
        self.model = model
        self.databases = _opened(database, "cpu")
        for one in self.databases.values():
            model.check_database(one)
        self.interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        database: Databases | None = None,
        device: DeviceName = "auto",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Open a model: `assets://NAME`, or a folder that training or `save_pretrained` wrote.

        Args:
            model: its name.
            database: a folder, an open one, or several by name; None: the one that the model was
                saved with. An LDM needs none.
            device: what networks compute on; `auto`: a GPU where there is one.
            dtype: what the network computes in, torch.bfloat16 or torch.float32; None: the faster
                one of the device. Weights stay float32, and so does the first stage.

        Raises:
            ModelError: the model cannot be opened.
            UsageError: networks do not compute in the type.
            DatabaseError: there is no database in the folder, or the one that the model was saved
                with has changed.
            EncoderMismatchError: a database does not belong to the model's encoder.
        """
        precision = precision_of(dtype)
        opened = open_model(model, compute_device(device))
        opened.generator.precision = precision
        if database is None:
            return cls(opened, open_default_database(opened, device))
        return cls(opened, _opened(database, device))

    def save_pretrained(self, directory: str | Path, *, default_database: bool = False) -> None:
        """Write the model into a new folder in diffusers' layout; see `write_diffusers_folder`.

        Args:
            directory: the folder.
            default_database: note the address of the pipeline's first database, to be opened by
                `from_pretrained` where none is given.

        Raises:
            UsageError: the pipeline has none.
        """
        from rdm.sampling.pipelines.diffusers_folder import write_diffusers_folder

        noted = next(iter(self.databases.values()), None) if default_database else None
        if default_database and noted is None:
            raise UsageError(
                "the pipeline has no database to note",
                where="default_database",
                fix="open one with the pipeline, or leave it out",
            )
        write_diffusers_folder(self.model, Path(directory), noted)

    def __call__(  # noqa: PLR0913 - diffusers' users expect one call with everything
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        image: PictureName | Sequence[PictureName] | None = None,
        class_name: str | Sequence[str] | None = None,
        patch: int | str | Sequence[int | str] | None = None,
        unconditional: bool = False,
        neighbors: Sequence[int | str] = (),
        k: int | None = None,
        pool: int | None = None,
        tokens: Literal["neighbors", "query", "query+neighbors"] = "neighbors",
        exclude: Sequence[str] | Mapping[str, Sequence[int | str]] = (),
        weights: Mapping[int | str, float] | None = None,
        database_weights: Mapping[str, float] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_neighbors: Sequence[int | str] = (),
        negative_scale: float | None = None,
        strength: float | None = None,
        mask_image: PictureName | None = None,
        start: Mapping[str, Any] | None = None,
        turn: Mapping[str, Any] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_weight: float | None = None,
        eta: float | None = None,
        scheduler: str | None = None,
        settings: Mapping[str, Any] | None = None,
        seeds: str | int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        request: Request | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("x0",),
    ) -> Any:
        """Draw pictures, each query with every seed, and return a RetrievalPipelineOutput.

        What is None has `Request`'s default.

        Args:
            prompt: query in words, or several.
            image: query as a picture, or several: opened ones or files. With `strength` or
                `mask_image`, as in diffusers, the one picture to change.
            class_name: classes.
            patch: patches of the database as queries.
            unconditional: draw queries from p_D.
            neighbors: patches by hand; alone they are all that conditions.
            k: tokens of each picture.
            pool: of the nearest l, each seed draws its own.
            tokens: what conditions, see `Retrieval`.
            exclude: image ids, or a mapping as `Exclusions` has it.
            weights: factors on the attention of patches.
            database_weights: shares of the neighbors by database; none: the first gives all.
            negative_prompt: texts that pictures are led away from.
            negative_neighbors: patches likewise.
            negative_scale: how strongly.
            strength: how much of the picture is changed.
            mask_image: white is drawn anew, black is kept.
            start: as `StartRequest` has it; its pictures may be open ones.
            turn: of each query to another one, as `QueryTurn` has it, likewise.
            num_inference_steps: of the sampler.
            guidance_scale: s of e_u + s (e_c - e_u).
            guidance_weight: w = s - 1, as papers write it; in place of the scale.
            eta: of DDIM.
            scheduler: the sampler's name.
            settings: further ones of `SampleSettings`.
            seeds: `0-7`, one, or several; by default 0 and as many as `num_images_per_prompt`.
            generator: in place of seeds: what it, or each, was seeded with.
            num_images_per_prompt: seeds counted on from 0 or from the generator's.
            request: a whole request, in place of all of these.
            output_type: of the images.
            return_dict: False: a tuple of the images alone.
            callback_on_step_end: called after each step as in diffusers.
            callback_on_step_end_tensor_inputs: of what it is given, `x0`, the present guess.

        Raises:
            UsageError: an argument says nothing, or two say different things.
        """
        pictures: dict[str, Image.Image] = {}
        if request is None:
            changes = strength is not None or mask_image is not None
            queries, changed = ([], several(image)) if changes else (several(image), [])
            begun = start_of(start, changed, strength, mask_image, pictures)
            asks = prompt or queries or class_name or patch or unconditional or neighbors
            if not asks and begun is not None and (name := begun.image) is not None:
                # Nothing else says what to draw: the picture itself is the query.
                queries = [pictures.get(name) or name]

            # Open pictures are asked for by name, as a request holds only what JSON can.
            images = [named_picture(one, pictures) for one in queries]
            numbers = seeds_of(seeds, generator, num_images_per_prompt)
            asks = prompt or images or class_name or patch or unconditional

            # Patches alone say how many there are: k need not be told again.
            by_hand = None if asks or not neighbors else len(neighbors)
            chosen = {
                "k": k if k is not None else by_hand,
                "num_steps": num_inference_steps,
                "guidance_scale": scale_of(guidance_scale, guidance_weight),
                "eta": 0.0 if eta is None and begun is not None and begun.invert else eta,
                "sampler": scheduler,
                **(settings or {}),
            }

            # A request refuses fields that it does not know, and checks the values of all.
            retrieval = {
                "databases": weighted(database_weights),
                "pool": pool,
                "tokens": tokens,
                "include": list(neighbors),
                "exclude": dict(exclude)
                if isinstance(exclude, Mapping)
                else {"photographs": several(exclude)},
                "weights": {str(name): weight for name, weight in (weights or {}).items()},
                "negative": negative_of(negative_prompt, negative_neighbors, negative_scale),
            }
            request = request_of(
                {
                    "texts": several(prompt),
                    "images": images,
                    "classes": several(class_name),
                    "patches": several(patch),
                    "unconditional": unconditional,
                    "turn": turn_of(turn, pictures),
                    "retrieval": retrieval,
                    "start": begun,
                    "settings": {name: one for name, one in chosen.items() if one is not None},
                    "seeds": numbers,
                },
                CALLED,
            )

        _check_tensors(callback_on_step_end_tensor_inputs)
        output = self._draw(request, pictures, output_type, callback_on_step_end)
        return output if return_dict else (output.images,)

    def look_up(self, request: Request) -> list[Conditioning]:
        """Return what conditions each picture of a request; nothing is drawn."""
        looked_up = LookUp(request, self.model.info, self.databases)
        return looked_up.rows(0, len(looked_up))

    def stream(
        self, request: Request, on_step: Callable[[DrawStep], object] | None = None
    ) -> Iterator[Sample]:
        """Yield a request's pictures as their batches are done; no more than one is held."""
        drawing = RequestDrawing(self.model, LookUp(request, self.model.info, self.databases))
        for numbers in drawing.batches():
            yield from drawing.drawn(numbers, on_step).samples

    def _draw(
        self,
        request: Request,
        pictures: Mapping[str, Image.Image],
        output_type: OutputType,
        callback: Callback | None,
    ) -> RetrievalPipelineOutput:
        """Draw a request whole."""
        self.interrupt = False

        def on_step(step: DrawStep) -> None:
            if callback is not None:
                callback(self, step.index - 1, None, {"x0": step.x0})
            if self.interrupt:
                raise _Interrupted

        # Looked up before anything is drawn: what cannot be asked fails at once.
        looked_up = LookUp(
            request,
            self.model.info,
            self.databases,
            open_image=opened_picture(pictures),
        )
        drawing = RequestDrawing(self.model, looked_up, opened=pictures)

        # An interrupted call returns the batches that were whole.
        drawn: list[Tensor] = []
        samples: list[Sample] = []
        try:
            for numbers in drawing.batches():
                batch = drawing.drawn(numbers, on_step)
                samples += batch.samples
                drawn.append(batch.latents)
        except _Interrupted:
            pass

        # Pictures without files have recipes without names.
        recipes = drawing.records(samples, [""] * len(samples))

        # Of no batch at all there are still shapes.
        if output_type == "latent":
            shape = self.model.config.network.sample_shape
            nothing = torch.zeros(0, *shape, device=self.model.device)
            images: Any = torch.cat([nothing, *drawn])
        else:
            pixels = [item.pixels for item in samples]
            empty = np.zeros((0, 0, 0, 3), np.uint8)
            images = as_type(np.stack(pixels) if pixels else empty, output_type)

        # Kept by the output, so that credits can be written when a user asks for them.
        databases = tuple(looked_up.databases.values())
        return RetrievalPipelineOutput(images, tuple(recipes), self.interrupt, databases)


def _opened(database: Databases | None, device: DeviceName) -> dict[str, RetrievalDatabase]:
    if database is None:
        return {}
    if isinstance(database, Mapping):
        return dict(database)
    if isinstance(database, RetrievalDatabase):
        return {database.folder.url: database}
    return {str(database): RetrievalDatabase.open(str(database), device=device)}


def _check_tensors(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name != "x0"]:
        raise UsageError(
            f"there is no tensor {unknown[0]!r} for a callback",
            where="callback_on_step_end_tensor_inputs",
            fix="x0: the network's present guess of the result",
        )
