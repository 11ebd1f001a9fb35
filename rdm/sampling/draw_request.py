"""Draw a request's pictures into a folder, resumable, for command line and flow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from rdm.config import Config
from rdm.database import RetrievalDatabase
from rdm.generators.model_folder import Model
from rdm.generators.sample_settings import DrawStep, OnDrawStep
from rdm.progress import tracking
from rdm.sampling.attribution import AttributionKind, attribute, check_attribution
from rdm.sampling.batches import rows_at_once
from rdm.sampling.c2pa_signature import PictureSigner
from rdm.sampling.output import REQUEST, SampleFolder, picture_name
from rdm.sampling.picture_file import parents_of
from rdm.sampling.pipeline import draw_samples, note_of
from rdm.sampling.record import Metadata
from rdm.sampling.recorder import Recorder
from rdm.sampling.request import Request
from rdm.sampling.retrieval.look_up import LookUp
from rdm.sampling.start import open_start


class DrawnCounts(Config):
    """How many pictures a folder has, and how many of them this run wrote."""

    pictures: int
    drawn: int


def draw_request(
    request: Request,
    model: Model,
    databases: Mapping[str, RetrievalDatabase],
    out: Path,
    *,
    on_step: OnDrawStep | None = None,
    metadata: Metadata = "full",
    attribution: Collection[AttributionKind] = (),
    signer: PictureSigner | None = None,
) -> DrawnCounts:
    """Draw what is missing of a request's pictures, and write each batch when it is done.

    A batch with a missing picture is drawn whole, so that a picture has the row and the bits of a
    run that was not interrupted. A kill, or an exception of `on_step`, loses the batch in work.

    Args:
        request: queries, seeds and settings.
        model: draws.
        databases: of the neighbors, by the request's names for them; none of a model without.
        out: the folder.
        on_step: called after each step of a batch; what it raises ends the drawing.
        metadata: what PNGs carry; `samples.json` has all of it.
        attribution: what is measured of each token; of `attention` there is a heat map too.
        signer: signs the pictures; heat maps stay unsigned.

    Raises:
        UsageError: the folder holds pictures of another request, or the model cannot be asked this.
        EncoderMismatchError: database and model do not belong to the same encoder.
        ConcurrentWriterError: another process is drawing into the folder.
    """
    check_attribution(model, attribution)
    looked_up, settings = LookUp(request, model.info, databases), request.settings
    # Before the folder is claimed: what cannot be drawn, or started from, leaves nothing behind.
    model.check_settings(settings)
    begun = None if request.start is None else open_start(request.start, model)
    image = None if request.start is None else request.start.image
    parents = () if image is None else parents_of(Path(image))
    weights = {one.name: one.weight for one in request.retrieval.databases}
    recorder = Recorder(model, looked_up.databases, settings, weights)
    shape = rows_at_once(settings, model.device)
    identity = looked_up.identity(model).model_copy(
        update={
            "metadata": metadata,
            "attribution": tuple(sorted(attribution)),
            "signed": signer is not None,
        }
    )
    if not (out / REQUEST).exists():
        looked_up.check()
    total, drawn = len(looked_up), 0
    with (
        SampleFolder(out, identity, metadata, signer) as folder,
        tracking("sample", total, "pictures", folder.num_finished) as tracker,
    ):

        def report(step: DrawStep) -> None:
            tracker.set(tracker.done, note_of(step))
            if on_step is not None:
                on_step(step)

        for start in range(0, total, shape):
            numbers = range(start, min(start + shape, total))
            missing = [number for number in numbers if not folder.finished(number)]
            if not missing:
                continue
            asked = looked_up.rows(numbers.start, numbers.stop)
            batch = draw_samples(model, asked, settings, report, begun)
            records = recorder.records(batch, [picture_name(number) for number in numbers])
            records = [record.model_copy(update={"parents": parents}) for record in records]
            if attribution:
                pixels = np.stack([item.pixels for item in batch])
                shares, maps = attribute(model, asked, pixels, attribution)
                records = [
                    record.model_copy(update={"attribution": of_it})
                    for record, of_it in zip(records, shares, strict=True)
                ]
                if maps is not None:
                    folder.add_maps(batch, records, maps)
            folder.add(list(zip(numbers, batch, records, strict=True)))
            drawn += len(missing)
            tracker.advance(len(missing))
        folder.finish()
    return DrawnCounts(pictures=total, drawn=drawn)
