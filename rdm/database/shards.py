"""What a version says of its image shards: the parts of each, and how many photographs live in all of them."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.database.contract import dropped_path, patches_path
from rdm.storage import Folder, Part, VersionStore


def describe_shard(store: VersionStore, stem: str, number: int) -> list[Part]:
    """Return the parts of an image shard that was stored, cut and embedded.

    Args:
        store: of the database.
        stem: the name of its photographs' tar.
        number: of its patches and embeddings.
    """
    folder = store.folder
    ledger = folder.read_table(f"images/{stem}.parquet", columns=["status"]).num_rows
    patches = folder.read_table(patches_path(number), columns=["patch_id"]).num_rows
    parts = [
        store.describe_part("images", f"images/{stem}.tar", ledger),
        store.describe_part("ledger", f"images/{stem}.parquet", ledger),
        store.describe_part("patches", patches_path(number), patches),
        store.describe_part("embeddings", f"img_emb/img_emb_{number:04d}.npy", patches),
        store.describe_part("metadata", f"metadata/metadata_{number:04d}.parquet", patches),
    ]
    if folder.exists(dropped_path(number)):
        dropped = folder.read_table(dropped_path(number), columns=["image_row"]).num_rows
        parts.append(store.describe_part("dropped", dropped_path(number), dropped))
    return parts


def count_living_images(folder: Folder, parts: Iterable[Part], tombstones: NDArray[np.int64]) -> int:
    """Return how many photographs have a patch that is not deleted."""
    tables = [folder.read_table(part.path, ["patch_id", "image_id"]) for part in parts if part.kind == "patches"]
    everything = pa.concat_tables(tables)
    living = pc.invert(pc.is_in(everything["patch_id"], pa.array(tombstones)))
    return pc.count_distinct(everything.filter(living)["image_id"]).as_py()
