"""From queries to pictures: neighbors become context tokens, from which the model draws."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.conditions import Known
from rdm.generators.model_folder import Model
from rdm.generators.neighbor_vectors import conditioning_vectors
from rdm.generators.sample_settings import DrawStep, OnDrawStep, SampleSettings
from rdm.models.first_stage.first_stage import to_uint8
from rdm.progress import tracking
from rdm.sampling.batches import filled, rows_at_once
from rdm.sampling.queries import (
    Query,
    QueryKind,
    null_queries,
    query_set_proposal,
    unconditional_queries,
)
from rdm.sampling.record import BatchPlace

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
    """

    query: Query
    seed: int
    pixels: NDArray[np.uint8]
    place: BatchPlace | None = None


def known_of(
    model: Model, database: RetrievalDatabase | None, queries: Sequence[Query]
) -> list[Known]:
    """Return what is known of the pictures of a batch: their neighbors' embeddings, captions and
    classes, where the model reads them."""
    known = [
        Known(
            text=query.label if query.kind == "text" and model.reads_text else None,
            label=model.class_names.index(query.label) if query.kind == "class" else None,
        )
        for query in queries
    ]
    config = model.config.conditions.neighbors
    if database is None or config is None or not model.reads_neighbors:
        return known
    ids = np.stack([query.neighbor_ids for query in queries])
    vectors = conditioning_vectors(database, ids, config.embedding).astype(np.float32)
    pairs = zip(known, torch.from_numpy(vectors), strict=True)
    return [replace(one, neighbors=row) for one, row in pairs]


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
        raise _no_database()
    proposal = query_set_proposal(database, model.info.queries_digest or "").truncated(top_m)
    return unconditional_queries(database, proposal, seeds, k)


def check_asked(
    model: Model,
    database: RetrievalDatabase | None,
    kinds: Collection[QueryKind],
    classes: Sequence[str] = (),
) -> None:
    """Refuse what a model cannot be asked.

    Args:
        model: that draws.
        database: where neighbors are looked up.
        kinds: of the queries.
        classes: that are asked for by name.

    Raises:
        UsageError: the model does not read what a query says, it has no such class, or there is no
            database for one that reads neighbors.
        EncoderMismatchError: database and model do not belong to the same encoder.
    """
    heard = {
        "image": model.reads_neighbors,
        "text": model.reads_neighbors or model.reads_text,
        "class": bool(model.class_names) and not model.reads_neighbors,
        "unconditional": True,
    }
    if unheard := [kind for kind in heard if kind in kinds and not heard[kind]]:
        options = [f"--{kind}" for kind in heard if heard[kind]]
        raise UsageError(
            f"the model was trained on {' and '.join(model.sources) or 'no condition'}, so "
            f"--{unheard[0]} cannot tell it anything",
            where=model.directory,
            fix=f"{', '.join(options)}, or a model of another recipe",
        )
    if unknown := [name for name in classes if name not in model.class_names]:
        raise UsageError(
            f"the model has no class {unknown[0]!r}",
            where=model.directory,
            fix=f"--class with one of: {', '.join(model.class_names)}",
        )
    if database is not None:
        model.check_database(database)
    elif model.reads_neighbors:
        raise _no_database()


def _no_database() -> UsageError:
    return UsageError(
        "the model reads neighbors, so it needs a database to look them up in", fix="--database DIR"
    )


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
    classes = [query.label for query in queries if query.kind == "class"]
    check_asked(model, database, {query.kind for query in queries}, classes)
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

        shape = rows_at_once(settings, model.device)
        for start in range(0, len(pairs), shape):
            batch = draw_batch(model, database, pairs[start : start + shape], settings, report)
            yield from batch
            tracker.advance(len(batch))


def note_of(step: DrawStep) -> str:
    """Return how far the batch in work is, for progress: `step 12/100`."""
    return f"step {step.index}/{step.total}"


@torch.no_grad()
def draw_batch(
    model: Model,
    database: RetrievalDatabase | None,
    pairs: Sequence[Pair],
    settings: SampleSettings,
    on_step: OnDrawStep | None = None,
) -> list[Sample]:
    """Draw one batch of pictures; arguments and errors as `sample`."""
    # A database may be given all the same: a baseline is sampled by the same command as its RDM.
    uses_neighbors = database is not None and model.reads_neighbors
    k = settings.k if uses_neighbors else 0
    asked = [(_conditioning(query, k), seed) for query, seed in pairs]
    shape = rows_at_once(settings, model.device)
    batch = filled(asked, shape)
    context = model.generator.context(known_of(model, database, [query for query, _ in batch.rows]))
    seeds = [seed for _, seed in batch.rows]
    images = to_uint8(model.draw(context, seeds, settings, batch.listener(on_step)))
    return [
        Sample(query, seed, image, BatchPlace(shape=shape, row=row))
        for row, ((query, seed), image) in enumerate(zip(asked, batch.counted(images), strict=True))
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
