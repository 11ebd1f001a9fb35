"""Draw a request's pictures into a folder, resumable, for command line and flow."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from rdm.compute.pool import Pool
from rdm.config import Config
from rdm.database import RetrievalDatabase
from rdm.generators.model_folder import Model
from rdm.generators.sample_settings import DrawStep, OnDrawStep
from rdm.progress import tracking
from rdm.sampling.contact_sheet import write_contact_sheet
from rdm.sampling.draw_shard import draw_on_workers
from rdm.sampling.drawing.attribution import AttributionKind
from rdm.sampling.drawing.pipeline import note_of
from rdm.sampling.output import REQUEST, SampleFolder, picture_name
from rdm.sampling.recipe.c2pa_signature import PictureSigner
from rdm.sampling.recipe.record import Metadata
from rdm.sampling.request.sample_request import Request
from rdm.sampling.request_drawing import RecordedBatch, RequestDrawing
from rdm.sampling.retrieval.look_up import LookUp


class DrawnCounts(Config):
    """How many pictures a folder has, and how many of them this run wrote."""

    pictures: int
    drawn: int
    pictures_per_second: float | None = None
    """Of those that this run drew; None where it drew none."""


def draw_request(  # noqa: PLR0913 - each is an option that users have, with a default
    request: Request,
    model: Model,
    databases: Mapping[str, RetrievalDatabase],
    out: Path,
    *,
    on_step: OnDrawStep | None = None,
    metadata: Metadata = "full",
    attribution: Collection[AttributionKind] = (),
    pool: Pool | None = None,
    signer: PictureSigner | None = None,
) -> DrawnCounts:
    """Draw what is missing of a request's pictures, and write each batch when it is done.

    A batch with a missing picture is drawn whole, so that a picture has the row and the bits of a
    run that was not interrupted. A kill, or an exception of `on_step`, loses the batches in work.

    Args:
        request: queries, seeds and settings.
        model: draws.
        databases: of the neighbors, by the request's names for them; none of a model without.
        out: the folder.
        on_step: called after each step of a batch; what it raises ends the drawing. Workers call
            nothing.
        metadata: what PNGs carry; `samples.json` has all of it.
        attribution: what is measured of each token; of `attention` there is a heat map too.
        pool: workers that draw; None: this process does.
        signer: signs the pictures; heat maps stay unsigned.

    Raises:
        UsageError: the folder holds pictures of another request, or the model cannot be asked this.
        EncoderMismatchError: database and model do not belong to the same encoder.
        ConcurrentWriterError: another process is drawing into the folder.
        StorageError: a worker does not see the model, a database or a picture of the request.
    """
    looked_up = LookUp(request, model.info, databases)
    # Before the folder is claimed: what cannot be drawn, or started from, leaves nothing behind.
    drawing = RequestDrawing(model, looked_up, attribution)
    identity = looked_up.identity(model).model_copy(
        update={
            "metadata": metadata,
            "attribution": tuple(sorted(attribution)),
            "signed": signer is not None,
        }
    )
    if not (out / REQUEST).exists():
        looked_up.check()

    total, drawn, started = len(looked_up), 0, time.monotonic()
    with SampleFolder(out, identity, metadata, signer) as folder:
        missing = [numbers for numbers in drawing.batches() if not folder.all_finished(numbers)]
        if pool is None:
            batches = _drawn_here(drawing, missing, folder, total, on_step)
        else:
            batches = draw_on_workers(drawing, missing, pool)
        for batch in batches:
            before = folder.num_finished
            if batch.maps is not None:
                folder.add_maps(batch.samples, batch.records, batch.maps)
            folder.add(list(zip(batch.numbers, batch.samples, batch.records, strict=True)))
            drawn += folder.num_finished - before
        folder.finish()
    write_contact_sheet(out, redrawn=drawn > 0)
    rate = drawn / max(time.monotonic() - started, 1e-9) if drawn else None
    return DrawnCounts(pictures=total, drawn=drawn, pictures_per_second=rate)


def _drawn_here(
    drawing: RequestDrawing,
    missing: Sequence[range],
    folder: SampleFolder,
    total: int,
    on_step: OnDrawStep | None,
) -> Iterator[RecordedBatch]:
    """Yield the missing batches, drawn in this process; each is written before the next begins."""
    with tracking("sample", total, "pictures", folder.num_finished) as tracker:

        def report(step: DrawStep) -> None:
            tracker.set(tracker.done, note_of(step))
            if on_step is not None:
                on_step(step)

        for numbers in missing:
            batch = drawing.drawn(numbers, report)
            yield drawing.recorded(batch, [picture_name(number) for number in numbers])
            tracker.set(folder.num_finished)
