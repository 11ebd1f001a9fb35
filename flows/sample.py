"""The flow `sample`: pictures for texts, or unconditional ones, with a gallery."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from flows.progress import artifact_progress
from rdm.compute.device import DeviceName, compute_device
from rdm.config import Record
from rdm.database import RetrievalDatabase
from rdm.report.html.database_pages import write_sample_gallery
from rdm.sampling import SampleSettings, open_model
from rdm.sampling.draw_request import draw_request
from rdm.sampling.draw_shard import describe_drawing, drawing_pool
from rdm.sampling.request.sample_request import Request, request_of


class DrawnPictures(Record):
    """What the flow drew, and where it is shown."""

    pictures: int
    drawn: int
    """Of these, what was missing."""
    pictures_per_second: float | None
    """Of what was drawn now; None: nothing."""
    gallery: str
    """Path of the page."""
    device: str
    """What drew them, in words."""


@task(name="draw", cache_policy=NO_CACHE)
def draw_task(
    model: str, database: str, out: str, request: Request, device: DeviceName, dask: str
) -> DrawnPictures:
    """Draw and write the pictures that are missing."""
    opened = open_model(model, compute_device(device))
    source = RetrievalDatabase.open(database, device=device)
    with drawing_pool(dask, device) as pool:
        counts = draw_request(request, opened, {database: source}, Path(out), pool=pool)
        used = describe_drawing(opened, pool)
    gallery = write_sample_gallery(Path(out), {database: source}, counts.pictures)
    return DrawnPictures(**counts.model_dump(), gallery=str(gallery.resolve()), device=used)


@flow(name="sample", validate_parameters=True)
def sample(
    model: str,
    database: str,
    out: str,
    texts: list[str] | None = None,
    num_seeds: int = 8,
    top_m: float = 0.01,
    overrides: list[str] | None = None,
    device: DeviceName = "auto",
    dask: str = "inline",
) -> DrawnPictures:
    """Draw pictures for texts, or unconditional ones where there are none.

    Args:
        model: `assets://NAME`, or a `model` folder.
        database: folder of the database to look neighbors up in.
        out: folder for pictures, records and gallery; the same request goes on where it stopped.
        texts: queries in words; empty: draw queries from p_D.
        num_seeds: pictures per text, or in all.
        top_m: share of the likeliest patches that p_D keeps.
        overrides: settings of the sampler as `key=value`.
        device: what networks compute on; `auto`: a GPU where there is one.
        dask: who draws: `inline`, this process; a number of worker processes; `local`, one per
            core; or a scheduler's address.
    """
    request = request_of(
        {
            "texts": texts or [],
            "unconditional": not texts,
            "seeds": f"0-{num_seeds - 1}",
            "top_m": top_m,
            "settings": SampleSettings().with_overrides(overrides or []),
        },
        "sample",
    )
    with artifact_progress():
        result = draw_task(model, database, out, request, device, dask)

    link = Path(result.gallery).as_uri()
    create_link_artifact(key="gallery", link=link, description=f"{result.pictures} pictures")
    return result
