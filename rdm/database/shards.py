"""Describe image shards for a version: the parts of each, and the photographs that live in all."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.contract import (
    INDEX_NAME,
    INFOS_NAME,
    dropped_path,
    embeddings_path,
    image_paths,
    metadata_path,
    patches_path,
)
from rdm.storage import Folder, IndexFacts, Part, VersionStore, living_rows


def describe_shard(store: VersionStore, stem: str, number: int) -> list[Part]:
    """Return the parts of an image shard that was stored, cut and embedded.

    Args:
        store: of the database.
        stem: the name of its photographs' tar.
        number: the number of its patches and embeddings.
    """
    folder, (images, rows, _) = store.folder, image_paths(stem)
    ledger = folder.read_table(rows, columns=["status"]).num_rows
    patches = folder.read_table(patches_path(number), columns=["patch_id"]).num_rows

    parts = [
        store.describe_part("images", images, ledger),
        store.describe_part("ledger", rows, ledger),
        store.describe_part("patches", patches_path(number), patches),
        store.describe_part("embeddings", embeddings_path(number), patches),
        store.describe_part("metadata", metadata_path(number), patches),
    ]

    # Only shards that dropped a patch have a table of them.
    if folder.exists(dropped_path(number)):
        dropped = folder.read_table(dropped_path(number), columns=["image_row"]).num_rows
        parts.append(store.describe_part("dropped", dropped_path(number), dropped))
    return parts


def describe_index(store: VersionStore, place: str, facts: IndexFacts) -> list[Part]:
    """Return the parts of the index in a folder."""
    return [
        store.describe_part("index", f"{place}/{INDEX_NAME}", facts.num_vectors),
        store.describe_part("infos", f"{place}/{INFOS_NAME}", 1),
    ]


def count_living_images(
    folder: Folder, parts: Iterable[Part], tombstones: NDArray[np.int64]
) -> int:
    """Return the number of photographs with a patch that is not deleted."""
    tables, first = [], 0
    for part in parts:
        if part.kind == "patches":
            living = living_rows(tombstones, first, part.num_rows)
            tables.append(folder.read_table(part.path, ["image_id"]).filter(pa.array(living)))
            first += part.num_rows
    return pc.count_distinct(pa.concat_tables(tables)["image_id"]).as_py()
