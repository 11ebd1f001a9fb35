"""Patchify: coordinates of the patches of each image shard, with ids assigned once."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rdm.config import digest_json
from rdm.sources import CropConfig, crop_boxes
from rdm.sources.ingest import SUCCESS
from rdm.storage import Folder, Markers

STAGE = "patchify"
PATCH_SCHEMA = pa.schema(
    [
        ("patch_id", pa.int64()),
        ("image_id", pa.string()),
        ("image_shard", pa.string()),
        ("image_row", pa.int32()),  # row of images/SHARD.parquet
        ("x0", pa.int32()),
        ("y0", pa.int32()),
        ("x1", pa.int32()),
        ("y1", pa.int32()),
    ]
)


def patches_path(part: int) -> str:
    """Return the path of a patch part."""
    return f"patches/patches_{part:04d}.parquet"


def patchify_shard(folder: Folder, stem: str, part: int, first_patch_id: int, config: CropConfig) -> dict[str, Any]:
    """Write the patches of one image shard; return `{"num_patches": ...}`.

    Ids count up from `first_patch_id` in the order of the shard's rows and of each photograph's patches.
    """
    ledger = folder.read_table(f"images/{stem}.parquet", columns=["image_id", "status", "width", "height", "sha256"])
    key = digest_json([config.model_dump(mode="json"), first_patch_id, stem, ledger.to_pydict()])
    markers = Markers(folder, STAGE)
    if (marker := markers.find(f"{part:04d}", key)) is not None:
        return marker.stats
    table = _patch_table(ledger, stem, first_patch_id, config)
    folder.write_table(patches_path(part), table)
    stats = {"num_patches": table.num_rows, "num_images": pc.sum(pc.equal(ledger["status"], SUCCESS)).as_py() or 0}
    markers.write(f"{part:04d}", key, [patches_path(part)], stats)
    return stats


def _patch_table(ledger: pa.Table, stem: str, first_patch_id: int, config: CropConfig) -> pa.Table:
    boxes, image_ids, image_rows = [], [], []
    for number, row in enumerate(ledger.to_pylist()):
        if row["status"] != SUCCESS:
            continue
        found = crop_boxes(row["image_id"], row["width"], row["height"], config)
        boxes.append(found)
        image_ids += [row["image_id"]] * len(found)
        image_rows += [number] * len(found)
    corners = np.concatenate(boxes) if boxes else np.zeros((0, 4), np.int32)
    ids = np.arange(first_patch_id, first_patch_id + len(corners), dtype=np.int64)
    columns = [ids, image_ids, [stem] * len(corners), np.array(image_rows, np.int32), *corners.T]
    return pa.Table.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, PATCH_SCHEMA, strict=True)],
        schema=PATCH_SCHEMA,
    )
