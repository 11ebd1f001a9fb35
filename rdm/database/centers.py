"""Cluster centers of a database's embeddings, as patches that stand for all of it."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from rdm.database.reader import RetrievalDatabase
from rdm.errors import UsageError

_ROWS_PER_CENTER = 64
_ITERATIONS = 20


def cluster_centers(
    database: RetrievalDatabase, count: int, excluded: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the patches nearest to the centers of a k-means, int64 [count], ascending.

    Instances chosen like this cover a data set better than as many drawn at random (Casanova et al.
    2021, IC-GAN). The result is a function of the embeddings alone: rows and first centers are
    drawn by a fixed seed. Two centers may have one nearest patch: then there are fewer.

    Args:
        database: whose patches.
        count: of clusters.
        excluded: sorted ids that are left out.

    Raises:
        UsageError: there are fewer patches than clusters.
    """
    ids = np.setdiff1d(database.living_ids(), excluded)
    if len(ids) < count:
        raise UsageError(
            f"{count} cluster centers of {len(ids)} patches",
            where=database.folder.url,
            fix=f"centers: {max(1, len(ids) // 10)}, or fewer",
        )

    # As many rows as k-means learns from; sorted, so that they are read in the order of the files.
    most = count * _ROWS_PER_CENTER
    if len(ids) > most:
        ids = np.sort(np.random.default_rng(0).choice(ids, most, replace=False))
    vectors = np.ascontiguousarray(database.embeddings(ids), np.float32)

    # Spherical: centers are compared with unit vectors by their cosine.
    means = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=_ITERATIONS,
        seed=1234,
        spherical=True,
        min_points_per_centroid=1,
    )
    means.train(vectors)

    # The members nearest to the centers: a center itself is no patch.
    assert means.centroids is not None
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return np.unique(ids[index.search(means.centroids, 1)[1][:, 0]])
