"""The flow `sample`: pictures for texts, or unconditional ones, with a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from flows.progress import artifact_progress
from rdm.database import RetrievalDatabase
from rdm.report.pages import write_sample_gallery
from rdm.sampling import SampleSettings, check_asked, open_model, proposed_queries, text_queries
from rdm.sampling import sample as draw
from rdm.sampling.output import write_samples


@task(name="draw", cache_policy=NO_CACHE)
def draw_task(
    model: str, database: str, out: str, texts: list[str], num_seeds: int, top_m: float, settings: SampleSettings
) -> int:
    """Draw and write the pictures; return how many."""
    opened, source = open_model(Path(model)), RetrievalDatabase.open(database)
    check_asked(opened, source, texts_or_images=bool(texts))
    seeds = list(range(num_seeds))
    if texts:
        pairs = [(query, seed) for query in text_queries(source, texts, settings.k) for seed in seeds]
    else:
        pairs = list(zip(proposed_queries(opened, source, seeds, top_m=top_m, k=settings.k), seeds, strict=True))
    samples = draw(opened, source, [query for query, _ in pairs], [seed for _, seed in pairs], settings)
    write_samples(Path(out), samples, opened, source, settings)
    write_sample_gallery(Path(out) / "index.html", samples, source)
    return len(samples)


@flow(name="sample", validate_parameters=True)
def sample(
    model: str,
    database: str,
    out: str,
    texts: list[str] | None = None,
    num_seeds: int = 8,
    top_m: float = 1.0,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Draw pictures for texts, or unconditional ones where there are none.

    Args:
        model: a `model` folder.
        database: folder of the database to look neighbors up in.
        out: folder for pictures, provenance and gallery.
        texts: queries in words; empty: draw queries from p_D.
        num_seeds: pictures per text, or in all.
        top_m: share of the likeliest patches that p_D keeps.
        overrides: settings of the sampler as `key=value`.
    """
    settings = SampleSettings().with_overrides(overrides or [])
    with artifact_progress():
        count = draw_task(model, database, out, texts or [], num_seeds, top_m, settings)
    gallery = (Path(out) / "index.html").resolve()
    create_link_artifact(key="gallery", link=gallery.as_uri(), description=f"{count} pictures")
    return {"pictures": count, "gallery": str(gallery)}
