"""Requests of `rdm sample`: queries, seeds and settings, and the pairs to draw."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from rdm.config import Config, digest_json
from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.model_folder import Model
from rdm.generators.sample_settings import SampleSettings, Setting
from rdm.sampling.pipeline import Pair, check_asked, proposed_queries
from rdm.sampling.queries import (
    Query,
    QueryKind,
    image_queries,
    load_query_image,
    plain_queries,
    text_queries,
)
from rdm.storage import sha256_file

MAX_SEED = 2**63 - 1
_MAX_PICTURES = 10_000_000
# unconditional queries at once: bounds the memory, and one pass over the vectors serves them all
_LOOKED_UP = 1024


class SampleRequest(Config):
    """Pictures to draw: each text, image and class with every seed, then a patch of p_D for each
    seed."""

    texts: tuple[str, ...] = ()
    images: tuple[str, ...] = Field(default=(), description="picture files")
    classes: tuple[str, ...] = Field(default=(), description="names of the model's classes")
    unconditional: bool = False
    seeds: str = Field(
        default="0-7", description="such as 0-7 or 3,5,9; picture i depends on its query and seed"
    )
    top_m: float = Field(
        default=0.01, gt=0, le=1, description="share of the likeliest patches that p_D keeps"
    )
    settings: SampleSettings = SampleSettings()

    @property
    def kinds(self) -> set[QueryKind]:
        """What is asked for."""
        asked: dict[QueryKind, bool] = {
            "text": bool(self.texts),
            "image": bool(self.images),
            "class": bool(self.classes),
            "unconditional": self.unconditional,
        }
        return {kind for kind, is_asked in asked.items() if is_asked}


class RequestIdentity(Config):
    """What decides the pictures of a request, without the places where things lie."""

    texts: tuple[str, ...]
    images: tuple[str, ...] = Field(description="SHA-256 of each query picture's file")
    classes: tuple[str, ...] = ()
    unconditional: bool
    top_m: float | None
    seeds: str
    settings: dict[str, Setting]
    model: str
    database: str | None

    def differing(self, other: RequestIdentity) -> list[str]:
        """Return the names of the fields that differ from another identity's."""
        return [
            name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)
        ]


class RequestedPairs:
    """The (query, seed) pairs of a request; a slice looks up its neighbors when asked for.

    Raises:
        UsageError: nothing is asked for, what the model cannot be asked, or `seeds` is no list of
            them.
        EncoderMismatchError: database and model do not belong to the same encoder.
        SourceError: a query picture cannot be read.
    """

    def __init__(
        self, request: SampleRequest, model: Model, database: RetrievalDatabase | None
    ) -> None:
        if not request.kinds:
            raise UsageError(
                "nothing to sample",
                fix='give --text "...", --image FILE, --class NAME or --unconditional',
            )
        check_asked(model, database, request.kinds, request.classes)
        self.request, self.model, self.database = request, model, database
        self.seeds = parse_seeds(request.seeds)
        # Read at once, so that a broken picture is refused before the first one is drawn.
        self._pictures = [load_query_image(Path(path)) for path in request.images]
        self._block: tuple[int, list[Query]] = (-1, [])

    @cached_property
    def _asked(self) -> list[Query]:
        request, database, k = self.request, self.database, self.request.settings.k
        if not self.model.reads_neighbors:
            texts = plain_queries("text", request.texts)
            return texts + plain_queries("class", request.classes)
        found: list[Query] = []
        if request.texts and database is not None:
            found += text_queries(database, request.texts, k)
        if self._pictures and database is not None:
            found += image_queries(database, self._pictures, request.images, k)
        return found

    @property
    def _num_asked(self) -> int:
        request = self.request
        asked = (*request.texts, *request.images, *request.classes)
        return len(asked) * len(self.seeds)

    def __len__(self) -> int:
        return self._num_asked + (len(self.seeds) if self.request.unconditional else 0)

    def rows(self, start: int, stop: int) -> list[Pair]:
        """Return the pairs start .. stop - 1, fewer at the end."""
        return [self._pair(number) for number in range(start, min(stop, len(self)))]

    def _pair(self, number: int) -> Pair:
        seeds = self.seeds
        if number < self._num_asked:
            query, seed = divmod(number, len(seeds))
            return self._asked[query], seeds[seed]
        place = number - self._num_asked
        return self._proposed(place), seeds[place]

    def _proposed(self, place: int) -> Query:
        # Blocks have fixed borders, so a resumed request looks up the same ones.
        block, row = divmod(place, _LOOKED_UP)
        if self._block[0] != block:
            seeds = self.seeds[block * _LOOKED_UP : (block + 1) * _LOOKED_UP]
            k, top_m = self.request.settings.k, self.request.top_m
            self._block = (
                block,
                proposed_queries(self.model, self.database, seeds, top_m=top_m, k=k),
            )
        return self._block[1][row]

    def identity(self) -> RequestIdentity:
        """Return what decides the pictures."""
        request, database = self.request, self.database if self.model.reads_neighbors else None
        return RequestIdentity(
            texts=request.texts,
            images=tuple(sha256_file(Path(path)) for path in request.images),
            classes=request.classes,
            unconditional=request.unconditional,
            top_m=request.top_m if request.unconditional and self.model.reads_neighbors else None,
            seeds=format_seeds(self.seeds),
            settings=self.model.acting(request.settings),
            model=self.model.digest,
            database=database and digest_json(database.version.model_dump(mode="json")),
        )


def parse_seeds(text: str) -> Sequence[int]:
    """Return seeds from `0-7`, `3,5,9` or a mixture.

    Raises:
        UsageError: the text is neither, a seed is out of range, or there are too many.
    """
    ranges: list[range] = []
    try:
        for piece in text.split(","):
            first, _, last = piece.partition("-")
            ranges.append(range(int(first), int(last or first) + 1))
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no list of seeds", where="--seeds", fix="write 0-7 or 3,5,9"
        ) from error

    if not all(ranges):
        raise UsageError(
            f"{text!r}: a range of seeds is empty", where="--seeds", fix="write 0-7 or 3,5,9"
        )

    # Checked by the ends of ranges: a list of 10^18 seeds is never made.
    if max(piece[-1] for piece in ranges) > MAX_SEED or sum(map(len, ranges)) > _MAX_PICTURES:
        raise UsageError(
            f"{text!r}: seeds go up to 2^63 - 1, and {_MAX_PICTURES:,} at once",
            where="--seeds",
            fix="write 0-7 or 3,5,9",
        )
    return ranges[0] if len(ranges) == 1 else [seed for piece in ranges for seed in piece]


def format_seeds(seeds: Sequence[int]) -> str:
    """Return seeds as `parse_seeds` reads them, runs of consecutive ones as `FIRST-LAST`."""
    breaks = [place for place, (a, b) in enumerate(pairwise(seeds), start=1) if b != a + 1]
    runs = [seeds[a:b] for a, b in pairwise([0, *breaks, len(seeds)])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
