"""The data contract of a retrieval database: where its parts lie, and what their columns are."""

from __future__ import annotations

import pyarrow as pa

CORNERS = ("x0", "y0", "x1", "y1")  # of a patch, in pixels of its photograph

PATCH_SCHEMA = pa.schema(
    [
        ("patch_id", pa.int64()),
        ("image_id", pa.string()),
        ("image_shard", pa.string()),
        ("image_row", pa.int32()),  # row of images/SHARD.parquet
        *((corner, pa.int32()) for corner in CORNERS),
    ]
)
"""Columns of a patch part; where patches are boxes, there is also their `label`."""

DROPPED_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_row", pa.int32()),
        *((corner, pa.int32()) for corner in CORNERS),
        ("reason", pa.string()),  # "cause: detail"
    ]
)
"""Columns of `dropped/patches_PART.parquet`: the patches of a shard that the filters leave out."""

DUPLICATES_KIND = "duplicates"  # of a version's part: photographs that resemble another one
CHANGES_PAGE = "changes.html"  # of the newest update, where one was written: a version that adds or removes deletes it


def patches_path(part: int) -> str:
    """Return the path of a patch part."""
    return f"patches/patches_{part:04d}.parquet"


def dropped_path(part: int) -> str:
    """Return the path of the table of the patches that a part left out; it exists where there are any."""
    return f"dropped/patches_{part:04d}.parquet"
