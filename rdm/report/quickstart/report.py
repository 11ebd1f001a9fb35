"""The quickstart's report: its sections, its headline numbers, and its one file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from rdm.report.data import HeldOutLoss, QuickstartReport, SampleGroup
from rdm.report.html.page import duration, large_count, number, render, signed, write_text

_EXAMPLE_SAMPLES = 8


@dataclass(frozen=True)
class Section:
    """A part of the page: anchor and template name, name in the contents, heading, and whether it
    has any content."""

    key: str
    short: str
    title: str
    present: bool


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page, and what it counts."""

    value: str
    label: str


def write_report(data: QuickstartReport, path: Path) -> None:
    """Write the report as one HTML file that needs no network, in place of an older one.

    Raises:
        StorageError: the file cannot be written; an older report then still stands.
    """
    write_text(path, render_report(data))


def render_report(data: QuickstartReport) -> str:
    """Return the report as HTML; what the run did not produce is named at the end."""
    sections = _sections(data)
    held_out = data.held_out

    return render(
        "report.html.j2",
        report=data,
        headlines=_headlines(data),
        example=_example(data),
        sections=[section for section in sections if section.present],
        omitted=[section.title.lower() for section in sections if not section.present],
        total_seconds=sum(stage.seconds for stage in data.stages),
        similarities=[value for value in data.similarities if math.isfinite(value)],
        losses=[(condition.name, condition.loss) for condition in held_out.conditions]
        if held_out
        else [],
        differences=[(difference.name, difference.estimate) for difference in held_out.differences]
        if held_out
        else [],
    )


def _sections(data: QuickstartReport) -> list[Section]:
    has_database = data.database is not None or data.photographs is not None
    has_queries = bool(data.queries or data.similarities)
    # a curve needs a loss that can be drawn
    training = data.training
    has_training = training is not None and any(map(math.isfinite, training.losses))
    has_numbers = data.held_out is not None or bool(data.metrics)

    return [
        Section("built", "Stages", "What was built", bool(data.stages)),
        Section("database", "Database", "The database", has_database),
        Section("queries", "Neighbors", "Queries beside their neighbors", has_queries),
        Section("training", "Training", "Training", has_training),
        Section("samples", "Samples", "Samples", bool(data.samples)),
        Section("swap", "Database swap", "The same seeds, another database", data.swap is not None),
        Section("numbers", "Measurements", "Measurements", has_numbers),
        Section("reproduce", "Run it again", "Run it again", data.reproduction is not None),
        Section("limits", "Limits", "Limits", bool(data.limits)),
    ]


def _example(data: QuickstartReport) -> SampleGroup | None:
    """Return the first draw that goes from a query over its neighbors to samples, with at most
    eight of these."""
    for group in data.samples:
        for draw in group.draws[:1]:
            if group.query.kind != "unconditional" and draw.neighbors and draw.samples:
                return replace(
                    group, draws=(replace(draw, samples=draw.samples[:_EXAMPLE_SAMPLES]),)
                )
    return None


def _headlines(data: QuickstartReport) -> list[Headline]:
    headlines = []
    if data.stages:
        total = sum(stage.seconds for stage in data.stages)
        headlines.append(Headline(duration(total), "from photographs to this page"))
    if (database := data.database) is not None:
        headlines.append(
            Headline(f"{database.patches:,}", f"patches of {database.photographs:,} photographs")
        )
        headlines.append(Headline(number(database.recall_at_20, 3), "recall@20 of the index"))

    if data.training is not None:
        headlines.append(Headline(large_count(data.training.num_parameters), "parameters trained"))
    if data.held_out is not None:
        headlines += _loss_headline(data.held_out)
    return headlines


def _loss_headline(held_out: HeldOutLoss) -> list[Headline]:
    """The first paired difference, which is the answer to whether neighbors help."""
    return [
        Headline(signed(difference.estimate.mean), f"held-out loss, {difference.name}")
        for difference in held_out.differences[:1]
    ]
