"""From queries to pictures: neighbors become context tokens, from which the model draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rdm.compute.device import describe_device
from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.model_folder import Model
from rdm.generators.neighbor_vectors import conditioning_vectors
from rdm.generators.sample_settings import DrawStep, OnDrawStep, SampleSettings
from rdm.progress import tracking
from rdm.sampling.asked import check_asked, no_database
from rdm.sampling.conditioning import Conditioning, TokenKind, Tokens
from rdm.sampling.draw import draw
from rdm.sampling.queries import (
    Query,
    null_queries,
    query_set_proposal,
    unconditional_queries,
)
from rdm.sampling.record import Credit, DatabaseReference, SampleRecord, credits_of

Pair = tuple[Query, int]
"""A query and the seed of one picture."""


@dataclass(frozen=True)
class Sample:
    """A picture and what it came from; the query's neighbors are those that conditioned it."""

    query: Query
    seed: int
    pixels: NDArray[np.uint8]

    def provenance(
        self, model: Model, database: RetrievalDatabase | None, settings: SampleSettings
    ) -> SampleRecord:
        """Return the picture's record: query, seed, settings, and every neighbor with its source
        and license."""
        databases = {} if database is None else {"": database}
        return records_of([self], model, databases, settings, [""])[0]


def records_of(
    samples: Sequence[Sample],
    model: Model,
    databases: Mapping[str, RetrievalDatabase],
    settings: SampleSettings,
    files: Sequence[str],
) -> list[SampleRecord]:
    """Return the records of pictures that are written to files.

    Args:
        samples: drawn pictures.
        model: that drew them.
        databases: of their neighbors by name; none of a model without.
        settings: that they were drawn with.
        files: name of each picture's file.
    """
    credits: list[tuple[Credit, ...]] = [()] * len(samples)
    references: tuple[DatabaseReference, ...] = ()
    if databases and model.reads_neighbors:
        credits = credits_of(databases, [item.query for item in samples])
        references = tuple(
            DatabaseReference(name=name, root=one.folder.url, version=one.version.number)
            for name, one in databases.items()
        )

    return [
        SampleRecord(
            file=file,
            kind=item.query.kind,
            label=item.query.label,
            seed=item.seed,
            neighbors=neighbors,
            settings=model.acting(settings),
            model=str(model.directory),
            model_digest=model.digest,
            device=describe_device(model.device),
            databases=references,
        )
        for item, neighbors, file in zip(samples, credits, files, strict=True)
    ]


def proposed_queries(
    model: Model, database: RetrievalDatabase | None, seeds: Sequence[int], *, top_m: float, k: int
) -> list[Query]:
    """Return an unconditional query of each seed: a patch of p_D, or nothing for an LDM.

    Args:
        model: its neighbors' query set defines p_D.
        database: None of a model without neighbors.
        seeds: one query each.
        top_m: share of the likeliest patches that p_D keeps.
        k: neighbors of each.

    Raises:
        UsageError: the model reads neighbors, and there is no database.
        DatabaseError: the database has no neighbors of the model's query set.
    """
    if not model.reads_neighbors:
        return null_queries(seeds)
    if database is None:
        raise no_database()
    proposal = query_set_proposal(database, model.info.queries_digest or "").truncated(top_m)
    return unconditional_queries(database, proposal, seeds, k)


def sample(
    model: Model,
    database: RetrievalDatabase | None,
    queries: Sequence[Query],
    seeds: Sequence[int],
    settings: SampleSettings,
    *,
    on_step: OnDrawStep | None = None,
) -> Iterator[Sample]:
    """Draw one picture per (query, seed) pair, and yield each batch's as it is done.

    Picture i depends on its own query and seed only; in the last bits also on the size of the batch
    that it is drawn in, because a processor's kernels do.

    Args:
        model: draws.
        database: where the queries' neighbors are; None for a model that reads none.
        queries: of each picture; repeat one to draw several seeds. A query's nearest `settings.k`
            neighbors condition.
        seeds: as many.
        settings: how to draw; `batch_size` pictures are held in memory.
        on_step: is told of every step of every batch. An exception that it raises ends the drawing
            between two steps and reaches the caller; pictures of earlier batches were yielded
            already.

    Raises:
        EncoderMismatchError: database and model do not belong to the same encoder.
        UsageError: neighbors for a model that reads none, no database for one that does, or fewer
            neighbors than k.
        ValueError: the sequences differ in length.
    """
    classes = [query.label for query in queries if query.kind == "class"]
    check_asked(model.info, database, {query.kind for query in queries}, classes)
    pairs = list(zip(queries, seeds, strict=True))
    return _drawn(model, database, pairs, settings, on_step)


def _drawn(
    model: Model,
    database: RetrievalDatabase | None,
    pairs: Sequence[Pair],
    settings: SampleSettings,
    on_step: OnDrawStep | None,
) -> Iterator[Sample]:
    with tracking("sample", len(pairs), "pictures") as tracker:

        def report(step: DrawStep) -> None:
            tracker.set(tracker.done, note_of(step))
            if on_step is not None:
                on_step(step)

        for start in range(0, len(pairs), settings.batch_size):
            batch = draw_batch(
                model, database, pairs[start : start + settings.batch_size], settings, report
            )
            yield from batch
            tracker.advance(len(batch))


def note_of(step: DrawStep) -> str:
    """Return how far the batch in work is, for progress: `step 12/100`."""
    return f"step {step.index}/{step.total}"


def draw_batch(
    model: Model,
    database: RetrievalDatabase | None,
    pairs: Sequence[Pair],
    settings: SampleSettings,
    on_step: OnDrawStep | None = None,
) -> list[Sample]:
    """Draw one batch of pictures; arguments and errors as `sample`."""
    # A database may be given all the same: a baseline is sampled by the same command as its RDM.
    read = database if model.reads_neighbors else None
    k = settings.k if read is not None else 0
    asked = conditioned(model, read, [(_conditioning(query, k), seed) for query, seed in pairs])
    return draw_samples(model, asked, settings, on_step)


def draw_samples(
    model: Model,
    asked: Sequence[Conditioning],
    settings: SampleSettings,
    on_step: OnDrawStep | None = None,
) -> list[Sample]:
    """Return a batch of pictures with what they came from; arguments and errors as `draw`."""
    pictures = draw(model, asked, settings, on_step)
    return [
        Sample(one.query, one.seed, picture) for one, picture in zip(asked, pictures, strict=True)
    ]


def conditioned(
    model: Model, database: RetrievalDatabase | None, pairs: Sequence[Pair]
) -> list[Conditioning]:
    """Return what conditions pictures, from queries whose neighbors were looked up already.

    Args:
        model: that will draw.
        database: of the neighbors; None: none is read.
        pairs: queries with as many neighbors each, and seeds.
    """
    config = model.config.conditions.neighbors
    if database is None or config is None:
        return [Conditioning(query, seed, None) for query, seed in pairs]
    ids = np.stack([query.neighbor_ids for query, _ in pairs])
    vectors = conditioning_vectors(database, ids, config.embedding).astype(np.float32)
    ones = np.ones(ids.shape[1], np.float32)
    kinds: tuple[TokenKind, ...] = ("patch",) * ids.shape[1]
    return [
        Conditioning(query, seed, Tokens(row, kinds, ones))
        for (query, seed), row in zip(pairs, vectors, strict=True)
    ]


def _conditioning(query: Query, k: int) -> Query:
    """Return a query with the neighbors that condition: its nearest k."""
    if len(query.neighbor_ids) < k:
        raise UsageError(
            f"{k} neighbors are to condition a picture, but {len(query.neighbor_ids)} were "
            "looked up for "
            f"{query.label[:80]!r}",
            fix=f"look up k={k} neighbors, or lower the setting k",
        )
    return replace(query, neighbor_ids=query.neighbor_ids[:k], similarities=query.similarities[:k])
