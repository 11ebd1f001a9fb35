"""Lay photographs down in img2dataset's layout: one tar, one Parquet ledger and one `_stats.json`
per shard."""

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
    """One shard of photographs to lay down: its part of a listing, and where they go.

    `refused` is the path, in the folder, of a JSON list of the SHA-256 of photographs that were
    removed on request.
    """

    folder: Folder
    stem: str
    source: str
    listing: pa.Table  # in a quarter of the memory that its rows take
    fetch: FetchConfig = FetchConfig()
    filters: FilterConfig = FilterConfig()
    refused: str = ""

    @property
    def key(self) -> str:
        """What decides the shard's contents."""
        limits = [self.filters.min_image_side, self.filters.max_image_aspect]
        pairs = zip(
            self.listing["image_id"].to_pylist(), self.listing["etag"].to_pylist(), strict=True
        )
        rows = [list(pair) for pair in pairs]
        return digest_json([self.source, rows, limits] if any(limits) else [self.source, rows])

    @property
    def marker_key(self) -> str:
        """What decides the shard's contents, and what is refused of them: that may be fetched
        already."""
        return digest_json([self.key, self.refused]) if self.refused else self.key

    @property
    def scratch(self) -> Path:
        """Where what was fetched lies until the shard is finished."""
        return scratch_path(self.folder, f"_markers/fetch/{self.stem}-{self.key}")


def ingest_shard(task: IngestTask) -> ShardStats:
    """Read or fetch, check and store the photographs of one shard; return its counts by status and
    by cause.

    Every row that was asked for gets a ledger row. A finished shard is not done again, except for
    those of its photographs whose failure may have passed, such as a server's; the others keep what
    they have.
    """
    shard = ShardWork(task.folder, STAGE, task.stem, task.marker_key, ShardStats)
    finished = finished_stats(shard)
    outputs = [f"images/{task.stem}{ending}" for ending in (".tar", ".parquet", "_stats.json")]
    scratch = task.scratch
    if finished is not None and not finished.retryable:
        _clear(scratch, task.stem)  # where the run that finished the shard was killed before it had
        return finished
    if finished is not None:
        _keep_earlier(task.folder, outputs, Shelf(scratch))
    with task.folder.writing(outputs[0]) as path:
        rows = _write_tar(path, task, scratch)
    task.folder.write_table(outputs[1], pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA))
    stats = shard_stats(rows)
    task.folder.write_record(outputs[2], stats)
    finish(shard, outputs, stats)
    _clear(scratch, task.stem)
    return stats


def _keep_earlier(folder: Folder, outputs: list[str], shelf: Shelf) -> None:
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
    for folder in scratch.parent.glob(f"{stem}-*"):  # those of earlier listings too
        shutil.rmtree(folder, ignore_errors=True)
    if scratch.parent.is_dir() and not any(scratch.parent.iterdir()):
        shutil.rmtree(scratch.parent, ignore_errors=True)


def _write_tar(path: Path, task: IngestTask, scratch: Path) -> list[Row]:
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
            if row["status"] == SUCCESS and (reason := _reason(row, task.filters, refused)):
                row |= {"status": SKIPPED, "error_message": reason, "num_bytes": 0}
            if row["status"] == SUCCESS:
                # time 0: equal input gives equal bytes
                member = tarfile.TarInfo(f"{row['key']}.{row['extension']}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                row["tar_offset"] = offset + tarfile.BLOCKSIZE
                offset += tarfile.BLOCKSIZE + -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            rows.append(row)
    return rows


def _reason(row: Row, filters: FilterConfig, refused: frozenset[str]) -> str:
    return (
        REMOVED if row["sha256"] in refused else image_reason(row["width"], row["height"], filters)
    )
