"""Queries: a text, a picture, or a draw from p_D, each with its neighbors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.encoders import normalize
from rdm.errors import DatabaseError, SourceError
from rdm.sampling.request.sample_request import QueryKind
from rdm.sampling.retrieval.proposal import Proposal
from rdm.sampling.retrieval.query_vectors import text_vectors
from rdm.sources import ImageDecodeError, decode_image


@dataclass(frozen=True)
class Query:
    """What is asked for, and what the database answers.

    Attributes:
        kind: text, image, class, patch, neighbors (chosen by hand, no query), or unconditional: a
            patch drawn from p_D, or nothing where the model reads no neighbors.
        label: the text, the file, the class, or the patch.
        embedding: unit query vector [D].
        neighbor_ids: [k], those chosen by hand, then the others, best first.
        similarities: [k].
        weights: [k], factors on the attention that neighbors get; none: all are 1.
        databases: [k], the name of each neighbor's database; none: there is one.
    """

    kind: QueryKind
    label: str
    embedding: NDArray[np.float32]
    neighbor_ids: NDArray[np.int64]
    similarities: NDArray[np.float32]
    weights: tuple[float, ...] = ()
    databases: tuple[str, ...] = ()

    @property
    def patches(self) -> tuple[tuple[str, int], ...]:
        """The name of each neighbor's database, empty where there is one, and its id."""
        names = self.databases or ("",) * len(self.neighbor_ids)
        return tuple(zip(names, self.neighbor_ids.tolist(), strict=True))


def text_queries(
    database: RetrievalDatabase, texts: Sequence[str], k: int, *, exact: bool = True
) -> list[Query]:
    """Look up the neighbors of texts, by the encoder's text tower; `exact` as in
    `RetrievalDatabase.search_vectors`.

    Args:
        database: where neighbors are looked up.
        texts: the queries.
        k: neighbors of each.
        exact: compare with every vector, do not ask the index.
    """
    return _looked_up(
        database, "text", texts, normalize(text_vectors(database.encoder, texts)), k, exact
    )


def image_queries(
    database: RetrievalDatabase,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    k: int,
    *,
    exact: bool = True,
) -> list[Query]:
    """Look up the neighbors of pictures, by the encoder's image tower; `exact` likewise.

    Args:
        database: where neighbors are looked up.
        images: the queries.
        labels: their names.
        k: neighbors of each.
        exact: compare with every vector, do not ask the index.
    """
    pixels = np.stack([database.encoder.preprocess(image) for image in images])
    return _looked_up(
        database, "image", labels, normalize(database.encoder.encode_images(pixels)), k, exact
    )


def unconditional_queries(
    database: RetrievalDatabase, proposal: Proposal, seeds: Sequence[int], k: int
) -> list[Query]:
    """Draw a patch x~ per seed from p_D and look up xi_k(x~, D), as RDM does.

    Args:
        database: where neighbors are looked up.
        proposal: p_D.
        seeds: one draw each.
        k: neighbors of each.
    """
    # Stored vectors are unit vectors already: x~ is not encoded again.
    drawn = proposal.draw(np.array(seeds, np.int64))
    vectors = database.embeddings(drawn).astype(np.float32)
    return _looked_up(
        database,
        "unconditional",
        [f"patch {patch_id}" for patch_id in drawn],
        vectors,
        k,
        exact=True,
    )


def plain_queries(kind: Literal["text", "class"], labels: Sequence[str]) -> list[Query]:
    """Return texts or classes as queries without neighbors: for a model that reads them alone."""
    nothing = np.zeros(0, np.float32)
    return [Query(kind, label, nothing, np.zeros(0, np.int64), nothing) for label in labels]


def null_queries(seeds: Sequence[int]) -> list[Query]:
    """Return a query without neighbors for each seed: what a model that reads none is asked."""
    nothing = np.zeros(0, np.float32)
    return [
        Query("unconditional", f"seed {seed}", nothing, np.zeros(0, np.int64), nothing)
        for seed in seeds
    ]


def load_query_image(path: Path) -> Image.Image:
    """Open a picture file given by the user.

    Raises:
        SourceError: it does not exist or is no picture.
    """
    # Decoded as sources are, so that rotation and colors agree with the database's.
    try:
        return decode_image(path.read_bytes())
    except FileNotFoundError as error:
        raise SourceError("the picture does not exist", where=path, fix="check --image") from error
    except (OSError, ImageDecodeError) as error:
        raise SourceError(
            f"the picture cannot be read: {error}", where=path, fix="give a JPEG, PNG or WebP file"
        ) from error


def _looked_up(
    database: RetrievalDatabase,
    kind: QueryKind,
    labels: Sequence[str],
    vectors: NDArray[np.float32],
    k: int,
    exact: bool,
) -> list[Query]:
    ids, similarities = database.search_vectors(vectors, k, exact=exact)
    return [
        Query(kind, label, vector, row, similarity)
        for label, vector, row, similarity in zip(labels, vectors, ids, similarities, strict=True)
    ]


def query_set_proposal(database: RetrievalDatabase, queries_digest: str) -> Proposal:
    """Return p_D of the query set that a model was trained on, or of the database's only one.

    Raises:
        DatabaseError: the database has no neighbors of that query set, or several that exclude
            different patches. (There is no fallback to uniform sampling.)
    """
    # p_D counts how often patches were neighbors in training: it is never guessed.
    table = NeighborTable.of_query_set(database.folder, queries_digest, database.version)
    if table is None:
        raise DatabaseError(
            "the database has no neighbors of the model's query set, so p_D is not known",
            where=database.folder.url,
            fix=f"rdm neighbors build --root {database.folder.url} --queries SPEC --name NAME",
        )
    return Proposal.from_neighbors(table.all_ids).without(database.tombstones)
