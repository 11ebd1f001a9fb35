"""Patchify: coordinates and ids of each image shard's patches, and what is left out."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rdm.compute.pool import Pool
from rdm.config import Config, Record, digest_json
from rdm.database.contract import (
    CORNERS,
    DROPPED_SCHEMA,
    PATCH_SCHEMA,
    dropped_path,
    image_paths,
    patches_path,
)
from rdm.database.pixels import iterate_reduced_patches
from rdm.progress import tracking
from rdm.sources import CropConfig, crop_boxes
from rdm.sources.causes import cause_of
from rdm.sources.ingest import SUCCESS
from rdm.sources.ledger import REMOVED
from rdm.sources.photographs.boxes import BoxConfig, Boxes, box_patches
from rdm.sources.photographs.filters import FilterConfig, contrast, patch_reason
from rdm.storage import Box, Folder, ShardWork, resumable

STAGE = "patchify"


class CutConfig(Config):
    """Settings that decide the patches of a photograph."""

    crop: CropConfig = CropConfig()
    boxes: BoxConfig = BoxConfig()
    filters: FilterConfig = FilterConfig()


@dataclass(frozen=True)
class CutTask:
    """One image shard to cut.

    `left_out` names photographs that are not cut at all; `removed` has the boxes, by photograph, of
    single patches that were removed on request and are left out; `boxes`, in the crop mode of that
    name, holds those of the shard's photographs.
    """

    folder: Folder
    stem: str
    part: int
    config: CutConfig
    left_out: tuple[str, ...] = ()
    boxes: Boxes | None = None
    removed: dict[str, list[Box]] = field(default_factory=dict)

    @cached_property
    def candidates(self) -> pa.Table:
        """The patches before any filter that needs pixels.

        PATCH_SCHEMA with ids 0, and `label` and `reason` (empty: not left out so far).
        """
        columns: dict[str, list[Any]] = {
            name: [] for name in ("image_id", "image_row", "label", "reason")
        }
        corners = [np.zeros((0, 4), np.int32)]

        # Photographs in the order of the ledger, each one's patches in the order of its crops.
        left_out = frozenset(self.left_out)
        for number, row in enumerate(self._ledger.to_pylist()):
            if row["status"] != SUCCESS or row["image_id"] in left_out:
                continue
            patches, labels = self._cut(row)
            corners.append(patches)
            columns["image_id"] += [row["image_id"]] * len(patches)
            columns["image_row"] += [number] * len(patches)
            columns["label"] += labels
            columns["reason"] += self._reasons(row["image_id"], patches)

        # One table; ids come later, when it is known how many patches earlier shards have.
        places = dict(zip(CORNERS, np.concatenate(corners).T, strict=True))
        shard = [self.stem] * len(columns["image_id"])
        table = pa.table(
            {**columns, **places, "image_shard": shard, "patch_id": np.zeros(len(shard), np.int64)}
        )
        fields = [*PATCH_SCHEMA, pa.field("label", pa.string()), pa.field("reason", pa.string())]
        return table.select([field.name for field in fields]).cast(pa.schema(fields))

    def _reasons(self, image_id: str, patches: NDArray[np.int32]) -> list[str]:
        """Return for each patch why it is left out, as far as that takes no pixels; else ""."""
        removed = frozenset(self.removed.get(image_id, ()))
        return [
            REMOVED
            if (x0, y0, x1, y1) in removed
            else patch_reason(x1 - x0, y1 - y0, self.config.filters)
            for x0, y0, x1, y1 in patches.tolist()
        ]

    def _cut(self, row: dict[str, Any]) -> tuple[NDArray[np.int32], list[str]]:
        """Return a photograph's patches int32 [P, 4] and their labels."""
        size = (row["width"], row["height"])
        if self.boxes is None:
            patches = crop_boxes(row["image_id"], *size, self.config.crop)
            return patches, [""] * len(patches)

        corners, labels = self.boxes.of(row["image_id"])
        square = self.config.boxes.shape == "square"
        in_pixels = self.boxes.in_pixels
        patches = box_patches(corners, size, row["orientation"], in_pixels=in_pixels, square=square)
        return patches, labels

    @cached_property
    def _ledger(self) -> pa.Table:
        return self.folder.read_table(image_paths(self.stem)[1])

    @property
    def key(self) -> str:
        """The digest of everything that decides the shard's patches, except for their ids."""
        names = ["image_id", "status", "width", "height", "sha256"]
        config = self.config.model_dump(mode="json", exclude={"boxes": {"path"}})
        # The etag says which boxes a photograph has.
        ledger = self._ledger.select([*names, "etag"] if self.boxes else names).to_pydict()
        decisive = [config, self.stem, ledger, sorted(self.left_out)]
        return digest_json([*decisive, self.removed] if self.removed else decisive)


class ContrastStats(Record):
    """A shard's candidates with too little contrast: `[position, contrast]`."""

    blank: list[tuple[int, float]]


class CutStats(Record):
    """Counts of a shard's cut: patches, photographs that have any, and what was left out."""

    num_patches: int
    num_images: int
    dropped: dict[str, int]


def cut_shards(tasks: Sequence[CutTask], first_patch_id: int, pool: Pool) -> list[CutStats]:
    """Cut image shards in order, with patch ids from `first_patch_id` on; return their counts.

    Only a look for blank patches needs pixels, and the pool; ids are given here, one shard after
    another.
    """
    blank: dict[int, list[tuple[int, float]]] = {}
    if tasks and tasks[0].config.filters.min_contrast:
        names = [str(task.part) for task in tasks]
        found = pool.map(find_blank, tasks, stage="contrast", names=names)
        blank = {number: stats.blank for number, stats in found}

    # One after another: a shard's first id depends on how many patches were kept before it.
    counts: list[CutStats] = []
    with tracking("patchify", len(tasks), "shards") as tracker:
        for number, task in enumerate(tasks):
            counts.append(patchify_shard(task, first_patch_id, blank.get(number, [])))
            first_patch_id += counts[-1].num_patches
            tracker.advance()
    return counts


def find_blank(task: CutTask) -> ContrastStats:
    """Return a shard's candidates with too little contrast."""
    shard = ShardWork(task.folder, "contrast", f"{task.part:04d}", task.key, ContrastStats)
    return resumable(shard, lambda: ([], _measure_contrast(task)))


def _measure_contrast(task: CutTask) -> ContrastStats:
    """Measure the contrast of the candidates that no other filter leaves out."""
    # Only those that no cheaper filter has dropped are decoded.
    candidates = task.candidates
    positions = np.flatnonzero(pc.equal(candidates["reason"], "").to_numpy(zero_copy_only=False))
    patches = iterate_reduced_patches(task.folder, candidates.take(pa.array(positions)))

    measured = [
        (int(position), contrast(patch)) for position, patch in zip(positions, patches, strict=True)
    ]
    blank = [
        (position, round(value, 2))
        for position, value in measured
        if value < task.config.filters.min_contrast
    ]
    return ContrastStats(blank=blank)


def patchify_shard(
    task: CutTask, first_patch_id: int, blank: Sequence[tuple[int, float]]
) -> CutStats:
    """Write the patches of one image shard, and those left out; return their counts.

    Ids count up from `first_patch_id` in the order of the shard's rows and of each photograph's
    patches.

    Args:
        task: the shard.
        first_patch_id: the id of its first patch.
        blank: what `find_blank` found.
    """
    key = digest_json([task.key, first_patch_id, list(blank)])
    shard = ShardWork(task.folder, STAGE, f"{task.part:04d}", key, CutStats)
    return resumable(shard, lambda: _write_patches(task, first_patch_id, blank))


def _write_patches(
    task: CutTask, first_patch_id: int, blank: Sequence[tuple[int, float]]
) -> tuple[list[str], CutStats]:
    """Write a shard's patches and those left out; return the paths and the counts."""
    # Those with a reason, so far or by their contrast, are left out.
    candidates = task.candidates
    reasons = candidates["reason"].to_pylist()
    for position, value in blank:
        reasons[position] = f"blank: contrast {value}"
    kept = np.array([not reason for reason in reasons], np.bool_)

    # Kept patches get their ids.
    outputs = [patches_path(task.part)]
    task.folder.write_table(
        outputs[0], _numbered(candidates.filter(pa.array(kept)), first_patch_id, task.boxes)
    )

    # Left-out patches keep their reasons in a file of their own.
    if not kept.all():
        dropped = candidates.set_column(
            candidates.column_names.index("reason"), "reason", pa.array(reasons)
        )
        outputs.append(dropped_path(task.part))
        table = dropped.filter(pa.array(~kept)).select(DROPPED_SCHEMA.names).cast(DROPPED_SCHEMA)
        task.folder.write_table(outputs[1], table)
    else:
        # An unfinished run with other filters may have left one.
        task.folder.delete(dropped_path(task.part))

    stats = CutStats(
        num_patches=int(kept.sum()),
        num_images=len(set(candidates.filter(pa.array(kept))["image_row"].to_pylist())),
        dropped=dict(Counter(cause_of(reason) for reason in reasons if reason)),
    )
    return outputs, stats


def _numbered(patches: pa.Table, first_patch_id: int, boxes: Boxes | None) -> pa.Table:
    ids = np.arange(first_patch_id, first_patch_id + patches.num_rows, dtype=np.int64)
    patches = patches.set_column(0, PATCH_SCHEMA.field("patch_id"), pa.array(ids)).drop_columns(
        "reason"
    )
    return patches if boxes is not None else patches.drop_columns("label")
