"""A small complete report, and a reader of the pages made from it."""

from __future__ import annotations

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from birds_version import version_facts

from rdm.report.data import (
    Command,
    Condition,
    Credit,
    DatabaseSwap,
    Difference,
    Draw,
    Estimate,
    HeldOutLoss,
    Metric,
    Neighbor,
    Photographs,
    Pixels,
    Query,
    QueryNeighbors,
    QuickstartReport,
    Reproduction,
    Sample,
    SampleGroup,
    Stage,
    Statistic,
    SwapRow,
    Training,
    Work,
)

_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and the tags that were never closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.mismatched: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            self.mismatched.append((tag, str(self.getpos())))

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every tag of this name."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        """The visible text with single spaces."""
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="session")
def examples() -> SimpleNamespace:
    return SimpleNamespace(
        Page=Page, picture=picture, neighbors=neighbors, samples=samples, make_report=make_report
    )


def picture(seed: int, side: int = 16) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def neighbors(count: int, start: int = 0) -> tuple[Neighbor, ...]:
    return tuple(Neighbor(picture(start + i), 0.9 - 0.01 * i, start + i) for i in range(count))


def samples(count: int, side: int = 16) -> tuple[Sample, ...]:
    return tuple(Sample(picture(100 + seed, side), seed) for seed in range(count))


def make_report(prompt: str = "an owl", num_samples: int = 2, side: int = 16) -> QuickstartReport:
    text, image = Query("text", prompt), Query("image", pixels=picture(1))
    loss = Estimate(0.3, 0.28, 0.32)
    draw = Draw(neighbors(4), samples(num_samples, side))
    return QuickstartReport(
        created="2026-01-02",
        stages=(
            Stage("Embed", 41.2, "vectors", 3240, "patches", 1_310_000_000, 3_320_000),
            Stage("Train", 82.4, "fit"),
        ),
        database=version_facts(),
        photographs=Photographs(
            "Open Images",
            "CC BY 2.0",
            "https://creativecommons.org/licenses/by/2.0/",
            (picture(2), picture(3)),
            (
                Credit(
                    "Ann Lee", "https://example.org/ann", (Work("Owl", "https://example.org/owl"),)
                ),
            ),
        ),
        queries=(QueryNeighbors(image, neighbors(3)), QueryNeighbors(text, neighbors(3, 50))),
        similarities=(0.5, 0.6, 0.7),
        training=Training(
            "rdm-tiny", (1, 2, 3), (1.0, 0.5, 0.4), 11_700_000, 64, 82.4, "2 CPU cores", 0.1
        ),
        samples=(
            SampleGroup(text, (draw,), 2.0),
            SampleGroup(
                Query("unconditional"), (Draw(neighbors(2), samples(1)), Draw((), samples(1)))
            ),
        ),
        swap=DatabaseSwap(
            "half A",
            "half B",
            "Two halves.",
            (SwapRow(text, draw, draw),),
            (Statistic("own half", "share", Estimate(0.8, 0.7, 0.9), 0.5),),
        ),
        held_out=HeldOutLoss(
            (Condition("true", "stored", loss), Condition("shuffled", "another's", loss)),
            (Difference("shuffled minus true", Estimate(0.0177, 0.0141, 0.0213)),),
            92,
            8,
            0.1,
        ),
        metrics=(
            Metric("FID", 142.3, "Inception v3", 512, "92 held-out photographs", "bicubic to 299"),
        ),
        reproduction=Reproduction(
            (Command("rdm quickstart --root out", "everything"),),
            {"k": 4},
            {"torch": "2.15"},
            {"CPU": "2 cores"},
            {"training": 0},
        ),
        limits=("The samples are small.",),
    )
