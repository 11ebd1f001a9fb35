"""From queries to pictures: neighbors become context tokens, from which the model draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.model_folder import Model
from rdm.generators.neighbor_vectors import conditioning_vectors
from rdm.generators.sample_settings import DrawStep, OnDrawStep, SampleSettings
from rdm.progress import tracking
from rdm.sampling.drawing.batches import rows_at_once
from rdm.sampling.drawing.draw import draw
from rdm.sampling.recipe.record import BatchPlace
from rdm.sampling.request.asked import check_asked, no_database
from rdm.sampling.request.start_request import StartRecord
from rdm.sampling.retrieval.conditioning import Conditioning, TokenKind, Tokens
from rdm.sampling.retrieval.queries import (
    Query,
    null_queries,
    query_set_proposal,
    unconditional_queries,
)

Pair = tuple[Query, int]
"""A query and the seed of one picture."""


@dataclass(frozen=True)
class Sample:
    """A picture and what it came from; the query's neighbors are those that conditioned it.

    Attributes:
        query: what was asked.
        seed: of the noise.
        pixels: uint8 [H, W, 3].
        place: in the batch that it was drawn in.
        conditioning: what it was drawn from; None of a picture that was read back.
    """

    query: Query
    seed: int
    pixels: NDArray[np.uint8]
    place: BatchPlace | None = None
    conditioning: Conditioning | None = None
    start: StartRecord | None = None


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
    # A baseline without neighbors is asked as its RDM is, and hears nothing.
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

    Picture i depends on its own query and seed only: batches have one shape, see `batches`.

    Args:
        model: draws.
        database: where the queries' neighbors are; None for a model that reads none.
        queries: of each picture; repeat one to draw several seeds. A query's nearest `settings.k`
            neighbors condition.
        seeds: as many.
        settings: how to draw; a batch of pictures is held in memory.
        on_step: is told of every step of every batch. An exception that it raises ends the drawing
            between two steps and reaches the caller; pictures of earlier batches were yielded
            already.

    Raises:
        EncoderMismatchError: database and model do not belong to the same encoder.
        UsageError: neighbors for a model that reads none, no database for one that does, or fewer
            neighbors than k.
        ValueError: the sequences differ in length.
    """
    # Here and not in the generator: errors come with the call, not with the first picture.
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

        # Pictures are yielded batch by batch: memory does not grow with their number.
        shape = rows_at_once(settings, model.device)
        for start in range(0, len(pairs), shape):
            batch = draw_batch(model, database, pairs[start : start + shape], settings, report)
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
    shape = rows_at_once(settings, model.device)
    pictures = draw(model, asked, settings, on_step)
    places = [BatchPlace(shape=shape, row=number % shape) for number in range(len(asked))]
    return [
        Sample(one.query, one.seed, picture, place, one)
        for one, picture, place in zip(asked, pictures, places, strict=True)
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

    # All vectors of a batch in one read of the database.
    ids = np.stack([query.neighbor_ids for query, _ in pairs])
    vectors = conditioning_vectors(database, ids, config.embedding).astype(np.float32)

    # Weights come with requests: here every neighbor counts alike.
    ones = np.ones(ids.shape[1], np.float32)
    kinds: tuple[TokenKind, ...] = ("patch",) * ids.shape[1]
    return [
        Conditioning(query, seed, Tokens(row, kinds, ones, query.patches))
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
