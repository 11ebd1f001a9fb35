"""The drawing of one request, batch by batch: command, flow, workers and Python draw by it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rdm.generators.model_folder import Model
from rdm.generators.sample_settings import OnDrawStep
from rdm.sampling.drawing.attribution import AttributionKind, attribute, check_attribution
from rdm.sampling.drawing.batches import filled, rows_at_once
from rdm.sampling.drawing.draw import draw_filled
from rdm.sampling.drawing.pipeline import Sample
from rdm.sampling.drawing.start import open_start
from rdm.sampling.recipe.picture_file import parents_of
from rdm.sampling.recipe.record import BatchPlace, SampleRecord
from rdm.sampling.recorder import Recorder
from rdm.sampling.retrieval.look_up import LookUp


@dataclass(frozen=True, eq=False)
class DrawnBatch:
    """The pictures of one batch.

    Attributes:
        numbers: of the pictures in their request.
        samples: the pictures.
        latents: [B, ...], the same in the model's space.
    """

    numbers: range
    samples: list[Sample]
    latents: Tensor


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """The pictures of one batch with their recipes: what is written.

    Attributes:
        numbers: of the pictures in their request.
        samples: the pictures.
        records: of each.
        maps: heat maps [B, L, h, w] of their tokens, where they were asked for.
    """

    numbers: range
    samples: list[Sample]
    records: list[SampleRecord]
    maps: NDArray[np.float32] | None

    def without_tokens(self) -> RecordedBatch:
        """Return the batch without what conditioned it, which is not written: to be sent."""
        samples = [replace(item, conditioning=None) for item in self.samples]
        return replace(self, samples=samples)


class RequestDrawing:
    """What draws the batches of a request: all of one shape, each by itself.

    Args:
        model: draws.
        looked_up: what conditions the pictures.
        attribution: what is measured of each token.
        shape: rows of a batch; None: those of the settings, else of the device.
        opened: pictures that the request names and that are no files, by their names.

    Raises:
        UsageError: the model cannot draw with these settings, measure this, or start from this.
        SourceError: the picture to start from cannot be read.
    """

    def __init__(
        self,
        model: Model,
        looked_up: LookUp,
        attribution: Collection[AttributionKind] = (),
        shape: int | None = None,
        opened: Mapping[str, Image.Image] = MappingProxyType({}),
    ) -> None:
        request = looked_up.request

        # What the model cannot do is refused before a start is encoded.
        check_attribution(model, attribution)
        model.check_settings(request.settings)
        self.model, self.looked_up, self.attribution = model, looked_up, tuple(attribution)
        self.shape = rows_at_once(request.settings, model.device) if shape is None else shape

        # A start is encoded once for all batches.
        self._start = None if request.start is None else open_start(request.start, model, opened)
        self._start_record = None if self._start is None else self._start.record

        # Pictures that were drawn carry recipes: what is made of them names them as parents.
        image = None if request.start is None else request.start.image
        self._parents = () if image is None or image in opened else parents_of(Path(image))

        weights = {one.name: one.weight for one in request.retrieval.databases}
        self._recorder = Recorder(model, looked_up.databases, request.settings, weights)

    def batches(self) -> Iterator[range]:
        """Yield the numbers of each batch's pictures."""
        total = len(self.looked_up)
        for start in range(0, total, self.shape):
            yield range(start, min(start + self.shape, total))

    def drawn(self, numbers: range, on_step: OnDrawStep | None = None) -> DrawnBatch:
        """Draw one of the batches; what `on_step` raises ends the drawing."""
        asked = self.looked_up.rows(numbers.start, numbers.stop)
        settings = self.looked_up.request.settings

        # A last batch is filled up: rows of a smaller one would have other last bits.
        batch = filled(asked, self.shape)
        pictures, latents = draw_filled(self.model, batch, settings, on_step, self._start)
        samples = [
            Sample(
                one.query,
                one.seed,
                picture,
                BatchPlace(shape=self.shape, row=row),
                one,
                self._start_record,
            )
            for row, (one, picture) in enumerate(zip(asked, pictures, strict=True))
        ]
        return DrawnBatch(numbers, samples, latents)

    def records(self, samples: Sequence[Sample], files: Sequence[str]) -> list[SampleRecord]:
        """Return the recipes of pictures that are written to files."""
        records = self._recorder.records(samples, files)
        return [record.model_copy(update={"parents": self._parents}) for record in records]

    def recorded(self, batch: DrawnBatch, files: Sequence[str]) -> RecordedBatch:
        """Return a batch with its recipes and with what is measured of it."""
        samples, maps = batch.samples, None
        records = self.records(samples, files)
        if self.attribution:
            # Measured of pictures as they are drawn, while their tokens are still in memory.
            asked = [item.conditioning for item in samples if item.conditioning is not None]
            pixels = np.stack([item.pixels for item in samples])
            shares, maps = attribute(self.model, asked, pixels, self.attribution)
            records = [
                record.model_copy(update={"attribution": of_it})
                for record, of_it in zip(records, shares, strict=True)
            ]
        return RecordedBatch(batch.numbers, samples, records, maps)
