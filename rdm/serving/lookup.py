"""Look-ups: from a query to neighbors and the tokens that they condition a picture by.

No network that draws is touched here, and no database where pictures are drawn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdm.encoders import normalize
from rdm.generators.neighbor_vectors import conditioning_vectors
from rdm.sampling.queries import query_set_proposal
from rdm.serving.databases import Neighbor, OpenDatabase
from rdm.serving.models import KnownModel
from rdm.serving.problems import ServeError
from rdm.serving.request import AskedQuery, Excluded, Retrieval

QueryKind = Literal["text", "image", "unconditional"]


@dataclass(frozen=True)
class Found:
    """What a query found in one version of a database.

    Attributes:
        database: the version.
        label: the query in words.
        kind: of the query, as pictures record it.
        neighbors: those that condition, nearest first.
        tokens: their embeddings, float32 [k, D].
        milliseconds: that the look-up took.
    """

    database: OpenDatabase
    label: str
    kind: QueryKind
    neighbors: tuple[Neighbor, ...]
    tokens: NDArray[np.float32]
    milliseconds: float


def look_up(
    model: KnownModel | None,
    opened: OpenDatabase,
    query: AskedQuery,
    retrieval: Retrieval,
    seed: int,
    picture: Image.Image | None = None,
) -> Found:
    """Return the neighbors of a query.

    Args:
        model: whose tokens are wanted, and whose query set p_D is of; None: neither.
        opened: where to look.
        query: what for.
        retrieval: how many, and which not.
        seed: of a draw from p_D.
        picture: of a query by picture.

    Raises:
        ServeError: a patch was removed, or too few are left.
        DatabaseError: p_D of the model's query set is not known.
    """
    started = time.perf_counter()
    vector = _vector(model, opened, query, seed, picture)
    ids, similarities = _nearest(opened, vector, retrieval.k, retrieval.exclude)
    neighbors = opened.neighbors(ids, similarities)
    embedding: Literal["unit", "raw"] = "unit"
    if model is not None and (config := model.info.generator.conditions.neighbors) is not None:
        embedding = config.embedding
    tokens = conditioning_vectors(opened.database, ids, embedding).astype(np.float32)
    return Found(
        database=opened,
        label=query.label,
        kind="text"
        if query.text is not None
        else "image"
        if query.unconditional is None
        else "unconditional",
        neighbors=neighbors,
        tokens=tokens,
        milliseconds=round((time.perf_counter() - started) * 1000, 1),
    )


def _vector(
    model: KnownModel | None,
    opened: OpenDatabase,
    query: AskedQuery,
    seed: int,
    picture: Image.Image | None,
) -> NDArray[np.float32]:
    """Return the unit vector [1, D] of a query."""
    database = opened.database
    if query.text is not None:
        return normalize(database.encoder.encode_texts([query.text]))
    if picture is not None:
        pixels = database.encoder.preprocess(picture)[None]
        return normalize(database.encoder.encode_images(pixels))
    if query.patch is not None:
        opened.refuse_removed([query.patch])
        return database.embeddings(np.array([query.patch])).astype(np.float32)
    return database.embeddings(np.array([_proposed(model, opened, query, seed)])).astype(np.float32)


def _proposed(model: KnownModel | None, opened: OpenDatabase, query: AskedQuery, seed: int) -> int:
    """Return a patch of p_D, or, of a database without the model's query set, of a fair draw."""
    database, asked = opened.database, query.unconditional
    assert asked is not None
    if database.version.parts_of("queryset"):
        digest = (model and model.info.queries_digest) or ""
        proposal = query_set_proposal(database, digest).truncated(asked.top_m)
        return int(proposal.draw(np.array([seed], np.int64))[0])
    living = database.living_ids()
    return int(living[np.random.default_rng([seed, 0x9D]).integers(len(living))])


def _nearest(
    opened: OpenDatabase, vector: NDArray[np.float32], k: int, excluded: Excluded
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k nearest patches [k] that are not excluded, and their similarities [k]."""
    database = opened.database
    living = database.version.num_live_patches
    photographs, patches = set(excluded.photographs), set(excluded.patches)
    wanted = k + len(patches) + len(photographs)
    while True:
        asked = min(wanted, living)
        ids, similarities = database.search_vectors(vector, asked) if asked else _nothing()
        kept = ~np.isin(ids[0], list(patches)) if patches else np.ones(asked, bool)
        if photographs:
            names = database.patch_rows(ids[0]).column("image_id").to_pylist()
            kept &= np.array([name not in photographs for name in names], bool)
        if kept.sum() >= k:
            return ids[0][kept][:k], similarities[0][kept][:k]
        if asked == living:
            raise ServeError(
                "too_few_neighbors",
                f"{k} neighbors are wanted, and {int(kept.sum())} of {living} patches may be used",
                where="retrieval",
                fix="ask for fewer, or exclude less",
            )
        wanted *= 2


def _nothing() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
