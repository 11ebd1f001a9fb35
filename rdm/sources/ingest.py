"""Lay photographs down in img2dataset's layout: one tar, one Parquet ledger and one `_stats.json` per shard."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rdm.config import digest_json
from rdm.sources.decode import ImageDecodeError, decode_image, image_extension
from rdm.sources.listing import Source, names_picture, open_source
from rdm.storage import Folder, Markers

STAGE = "ingest"
SUCCESS, FAILED, SKIPPED = "success", "failed", "skipped"
LEDGER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # tar member name without ending
        ("image_id", pa.string()),
        ("url", pa.string()),  # where the picture came from
        ("status", pa.string()),  # success, failed, or skipped (a file that is no picture by its name)
        ("error_message", pa.string()),
        ("width", pa.int32()),  # upright, in pixels
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("num_bytes", pa.int64()),
        ("tar_offset", pa.int64()),  # of the picture's bytes in the tar, for direct reads
        ("extension", pa.string()),
        ("author", pa.string()),
        ("license", pa.string()),
        ("landing_page", pa.string()),
        ("etag", pa.string()),
    ]
)


@dataclass(frozen=True)
class IngestTask:
    """One shard of photographs to lay down: rows of a listing, and where they go."""

    folder: Folder
    stem: str
    source: str
    rows: tuple[dict[str, Any], ...]

    @property
    def key(self) -> str:
        """What decides the shard's contents."""
        return digest_json([self.source, [[row["image_id"], row["etag"]] for row in self.rows]])


def ingest_shard(task: IngestTask) -> dict[str, Any]:
    """Read, check and store the photographs of one shard; return its counts by status and by cause.

    Every row that was asked for gets a ledger row. A finished shard is not done again.
    """
    markers = Markers(task.folder, STAGE)
    if (marker := markers.find(task.stem, task.key)) is not None:
        return marker.stats
    source = open_source(task.source)
    outputs = [f"images/{task.stem}{ending}" for ending in (".tar", ".parquet", "_stats.json")]
    with task.folder.writing(outputs[0]) as path:
        rows = _write_tar(path, task, source)
    task.folder.write_table(outputs[1], pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA))
    stats = {
        "count": len(rows),
        "successes": sum(row["status"] == SUCCESS for row in rows),
        "failed": sum(row["status"] == FAILED for row in rows),
        "status_dict": dict(Counter(row["error_message"].partition(":")[0] or SUCCESS for row in rows)),
    }
    task.folder.write_json(outputs[2], stats)
    markers.write(task.stem, task.key, outputs, stats)
    return stats


def _write_tar(path: Path, task: IngestTask, source: Source) -> list[dict[str, Any]]:
    rows = []
    with open(path, "wb") as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        offset = 0
        for number, entry in enumerate(task.rows):
            row, data = _check(f"{task.stem}{number:04d}", entry, source)
            if row["status"] == SUCCESS:
                member = tarfile.TarInfo(f"{row['key']}.{row['extension']}")  # time 0: equal input gives equal bytes
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                row["tar_offset"] = offset + tarfile.BLOCKSIZE
                offset += tarfile.BLOCKSIZE + -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            rows.append(row)
    return rows


def _check(key: str, entry: dict[str, Any], source: Source) -> tuple[dict[str, Any], bytes]:
    row = {
        "key": key,
        "image_id": entry["image_id"],
        "url": entry["location"],
        "status": FAILED,
        "error_message": "",
        "num_bytes": 0,
        "etag": entry["etag"],
        **{name: entry[name] for name in ("author", "license", "landing_page")},
    }
    if not names_picture(entry["location"]):
        return {**row, "status": SKIPPED, "error_message": "not a picture by its name"}, b""
    try:
        data = source.read(entry["location"])
        width, height = decode_image(data).size
        extension = image_extension(data)
    except ImageDecodeError as error:
        return {**row, "error_message": str(error)}, b""
    except OSError as error:
        return {**row, "error_message": f"cannot be read: {error.strerror or error}"}, b""
    return {
        **row,
        "status": SUCCESS,
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "extension": extension,
    }, data
