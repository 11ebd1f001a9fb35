"""Store photographs in img2dataset's layout: a tar, a Parquet ledger and counts for each shard."""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rdm.config import digest_json
from rdm.sources.causes import is_passing
from rdm.sources.fetching.fetched import Shelf
from rdm.sources.http.client import FetchConfig
from rdm.sources.ledger import (
    FAILED,
    LEDGER_SCHEMA,
    REMOVED,
    SKIPPED,
    SUCCESS,
    Row,
    ShardStats,
    shard_stats,
)
from rdm.sources.open import open_source
from rdm.sources.photographs.filters import FilterConfig, image_reason
from rdm.storage import Folder, ShardWork
from rdm.storage.completion import finish, finished_stats
from rdm.storage.local_places import scratch_path

__all__ = ["FAILED", "LEDGER_SCHEMA", "SKIPPED", "STAGE", "SUCCESS", "IngestTask", "ingest_shard"]

STAGE = "ingest"


@dataclass(frozen=True, eq=False)
class IngestTask:
    """One shard of photographs to store: its part of a listing, and where they go.

    `refused` is the path, in the folder, of a JSON list of the SHA-256 of removed photographs.
    """

    folder: Folder
    stem: str
    source: str
    listing: pa.Table  # takes a quarter of the memory of its rows
    fetch: FetchConfig = FetchConfig()
    filters: FilterConfig = FilterConfig()
    refused: str = ""

    @property
    def key(self) -> str:
        """The digest of everything that decides the shard's contents."""
        limits = [self.filters.min_image_side, self.filters.max_image_aspect]
        pairs = zip(
            self.listing["image_id"].to_pylist(), self.listing["etag"].to_pylist(), strict=True
        )
        rows = [list(pair) for pair in pairs]
        return digest_json([self.source, rows, limits] if any(limits) else [self.source, rows])

    @property
    def marker_key(self) -> str:
        """The digest of the contents and of what is refused of them.

        Refused photographs may have been fetched already, so the scratch folder's key is without.
        """
        return digest_json([self.key, self.refused]) if self.refused else self.key

    @property
    def scratch(self) -> Path:
        """The folder of fetched photographs until the shard is finished."""
        return scratch_path(self.folder, f"_markers/fetch/{self.stem}-{self.key}")


def ingest_shard(task: IngestTask) -> ShardStats:
    """Read or fetch, check and store the photographs of one shard; return its counts.

    Every requested row gets a ledger row. A finished shard is not done again, except for those
    photographs whose failure may have passed, such as a server's; the others keep what they have.
    """
    shard = ShardWork(task.folder, STAGE, task.stem, task.marker_key, ShardStats)
    finished = finished_stats(shard)
    outputs = [f"images/{task.stem}{ending}" for ending in (".tar", ".parquet", "_stats.json")]
    scratch = task.scratch

    if finished is not None and not finished.retryable:
        _clear(scratch, task.stem)  # a run killed after its last file may have left it
        return finished

    # Some failures may have passed: stored photographs and final failures are taken over.
    if finished is not None:
        _keep_earlier(task.folder, outputs, Shelf(scratch))

    # The tar, then the ledger with its offsets, then the counts; the marker vouches for all three.
    with task.folder.writing(outputs[0]) as path:
        rows = _write_tar(path, task, scratch)
    task.folder.write_table(outputs[1], pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA))
    stats = shard_stats(rows)
    task.folder.write_record(outputs[2], stats)

    finish(shard, outputs, stats)
    _clear(scratch, task.stem)
    return stats


def _keep_earlier(folder: Folder, outputs: list[str], shelf: Shelf) -> None:
    """Put a finished shard's photographs and final failures on the shelf."""
    data = folder.local(outputs[0])
    with open(data, "rb") as tar:
        for number, row in enumerate(folder.read_table(outputs[1]).to_pylist()):
            if row["status"] == SUCCESS:
                tar.seek(row["tar_offset"])
                shelf.put(number, row, tar.read(row["num_bytes"]))
            elif not is_passing(row["error_message"]):
                shelf.settle(number, row["error_message"])
    shelf.save()


def _clear(scratch: Path, stem: str) -> None:
    """Delete the scratch folders of a shard, those of earlier listings, too."""
    for folder in scratch.parent.glob(f"{stem}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    if scratch.parent.is_dir() and not any(scratch.parent.iterdir()):
        shutil.rmtree(scratch.parent, ignore_errors=True)


def _write_tar(path: Path, task: IngestTask, scratch: Path) -> list[Row]:
    """Write a shard's usable photographs as a tar; return the ledger rows of all."""
    rows = []
    refused = frozenset(task.folder.read_json(task.refused)) if task.refused else frozenset()
    with (
        open(path, "wb") as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        offset = 0
        photographs = open_source(task.source).take(task.listing.to_pylist(), scratch, task.fetch)
        for number, (taken, data) in enumerate(photographs):
            row = {**taken, "key": f"{task.stem}{number:04d}"}
            # Filters and refusals apply to what decodes.
            if row["status"] == SUCCESS and (reason := _reason(row, task.filters, refused)):
                row |= {"status": SKIPPED, "error_message": reason, "num_bytes": 0}

            if row["status"] == SUCCESS:
                # Time 0, so that equal input gives equal bytes.
                member = tarfile.TarInfo(f"{row['key']}.{row['extension']}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                row["tar_offset"] = offset + tarfile.BLOCKSIZE
                offset += tarfile.BLOCKSIZE + -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

            rows.append(row)
    return rows


def _reason(row: Row, filters: FilterConfig, refused: frozenset[str]) -> str:
    """Return why a usable photograph is left out: removed on request, or by its size; else ""."""
    if row["sha256"] in refused:
        return REMOVED
    return image_reason(row["width"], row["height"], filters)
