"""Invariants between the parts of one image shard, whatever their digests say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rdm.database.contract import CORNERS, ORIGIN_COLUMNS, SHARD_KINDS
from rdm.database.reader import RetrievalDatabase
from rdm.sources.ledger import SUCCESS
from rdm.storage import Part, part_rows

UNIT_TOLERANCE = 2e-3  # of the length of a vector whose numbers were rounded to float16
BLOCK_ROWS = 65_536  # vectors whose lengths are computed at once


def open_shards(database: RetrievalDatabase) -> Iterator[Shard]:
    """Yield the image shards of a version, in row order."""
    columns = [database.version.parts_of(kind) for kind in SHARD_KINDS]
    for *members, rows in zip(*columns, part_rows(database.version), strict=True):
        yield Shard(
            database,
            dict(zip(SHARD_KINDS, members, strict=True)),
            rows.first,
            np.flatnonzero(rows.living),
        )


@dataclass(frozen=True, eq=False)
class Shard:
    """The parts of one image shard, its first patch id, and the rows of its living patches."""

    database: RetrievalDatabase
    parts: dict[str, Part]
    first: int
    living: NDArray[np.intp]

    @cached_property
    def ledger(self) -> pa.Table:
        """The photographs' rows."""
        return self._read("ledger")

    @cached_property
    def patches(self) -> pa.Table:
        """The patches' coordinates."""
        return self._read("patches")

    def findings(self) -> Iterator[str]:
        """Yield what is wrong with these parts; unmatched row counts end the search."""
        if counts := list(self._wrong_counts()):
            yield from counts
            return

        # Metadata are compared with patches, so only where these are sound.
        patches = list(self._wrong_patches())
        yield from patches or self._wrong_metadata()
        yield from self._wrong_vectors()
        yield from self._wrong_pictures()

    def _wrong_counts(self) -> Iterator[str]:
        """Yield the parts that have another number of rows than the version says."""
        found = {
            "ledger": self.ledger.num_rows,
            "patches": self.patches.num_rows,
            "embeddings": len(self.database.folder.read_array(self.parts["embeddings"].path)),
            "metadata": self._read("metadata").num_rows,
        }

        # Embeddings and metadata have a row for each patch.
        for kind, count in found.items():
            counted = "patches" if kind in ("embeddings", "metadata") else kind
            expected = self.parts[counted].num_rows
            if count != expected:
                yield f"{self.parts[kind].path} has {count} rows instead of {expected}"

    def _wrong_patches(self) -> Iterator[str]:
        """Yield what is wrong with ids, photographs and boxes of the patches."""
        path, patches = self.parts["patches"].path, self.patches
        if not np.array_equal(
            patches["patch_id"].to_numpy(), np.arange(self.first, self.first + patches.num_rows)
        ):
            yield f"{path} does not number its patches from {self.first} on"

        # Rows beyond the ledger cannot be looked up: nothing more can be said.
        rows = patches["image_row"].to_numpy()[self.living]
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.ledger.num_rows):
            yield f"{path} names photographs that {self.parts['ledger'].path} has not"
            return

        if self._of_photographs("image_id") != self._of_living("patches", "image_id"):
            yield f"{path} and {self.parts['ledger'].path} tell of different photographs"
        if self.database.has_pixels and not self._boxes_lie_inside():
            yield f"{path} has boxes that leave their photographs"

    def _boxes_lie_inside(self) -> bool:
        x0, y0, x1, y1 = (self.patches[name].to_numpy()[self.living] for name in CORNERS)
        width, height = (
            np.array(self._of_photographs(name), np.int64) for name in ("width", "height")
        )
        inside = (x0 >= 0) & (y0 >= 0) & (x0 < x1) & (y0 < y1) & (x1 <= width) & (y1 <= height)
        return bool(inside.all())

    def _wrong_metadata(self) -> Iterator[str]:
        """Yield where metadata and patches, or metadata and ledger, disagree."""
        path, own = self.parts["metadata"].path, self._read("metadata")
        for name in ("patch_id", "image_id"):
            if own[name].take(self.living).to_pylist() != self._of_living("patches", name):
                yield f"{path} and {self.parts['patches'].path} differ in {name}"

        # Patches that were imported bring credits of their own.
        if self.database.has_pixels:
            for name in ORIGIN_COLUMNS:
                if own[name].take(self.living).to_pylist() != [
                    value or "" for value in self._of_photographs(name)
                ]:
                    yield f"{path} and {self.parts['ledger'].path} differ in {name}"

    def _wrong_vectors(self) -> Iterator[str]:
        """Yield what is wrong with the vectors: their type, their dimension, or a length."""
        path = self.parts["embeddings"].path
        vectors = self.database.folder.read_array(path)
        dim = self.database.version.embedding_dim
        if vectors.dtype != np.float16 or vectors.shape[1:] != (dim,):
            yield (
                f"{path} holds {vectors.dtype} {list(vectors.shape[1:])} instead of float16 [{dim}]"
            )
            return

        for start in range(0, len(self.living), BLOCK_ROWS):
            block = np.asarray(vectors[self.living[start : start + BLOCK_ROWS]], np.float32)
            # Written so that NaN fails, too: it is not less than anything.
            if not np.all(np.abs(np.linalg.norm(block, axis=1) - 1) < UNIT_TOLERANCE):
                yield f"{path} has vectors that are not unit vectors"
                return

    def _wrong_pictures(self) -> Iterator[str]:
        """Yield the first picture whose bytes are not those of its ledger row."""
        path = self.parts["images"].path
        with open(self.database.folder.local(path), "rb") as file:
            for row in self.ledger.select(
                ["status", "image_id", "tar_offset", "num_bytes", "sha256"]
            ).to_pylist():
                if row["status"] == SUCCESS:
                    file.seek(row["tar_offset"])
                    if hashlib.sha256(file.read(row["num_bytes"])).hexdigest() != row["sha256"]:
                        yield (
                            f"{path} does not hold what {self.parts['ledger'].path} says "
                            f"of {row['image_id']}"
                        )
                        return

    def _of_photographs(self, name: str) -> list[object]:
        """Return a column of the ledger for each living patch."""
        return self.ledger[name].take(self.patches["image_row"].take(self.living)).to_pylist()

    def _of_living(self, kind: str, name: str) -> list[object]:
        """Return a column of a part for each living patch."""
        table = self.patches if kind == "patches" else self._read(kind)
        return table[name].take(self.living).to_pylist()

    def _read(self, kind: str) -> pa.Table:
        return self.database.folder.read_table(self.parts[kind].path)
