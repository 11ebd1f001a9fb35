"""The ledger: one row for every photograph that was requested, stored or not, and why not."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rdm.config import Record, absent
from rdm.sources.causes import cause_of, is_passing
from rdm.sources.http.urls import public_url
from rdm.sources.photographs.decode import (
    ImageDecodeError,
    decode_image,
    image_extension,
    image_orientation,
)
from rdm.sources.photographs.filters import perceptual_hash

SUCCESS, FAILED, SKIPPED = "success", "failed", "skipped"
# Cause: bytes of a photograph, or the box of a patch, that may not come back.
REMOVED = "removed on request"


IMPORTED = "imported"  # embedded elsewhere; its pixels are not here
LEDGER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # tar member name without ending
        ("image_id", pa.string()),
        ("url", pa.string()),  # where the picture came from, without its secrets
        # success, imported, failed, or skipped (no picture by its name, or opted out)
        ("status", pa.string()),
        ("error_message", pa.string()),  # "cause: detail"
        ("width", pa.int32()),  # upright, in pixels
        ("height", pa.int32()),
        # counter-clockwise degrees that make the stored bytes upright, see decode_image
        ("rotation", pa.int16()),
        # the same turn, or what EXIF says of it, as an EXIF orientation, 1 to 8
        ("orientation", pa.int8()),
        ("phash", pa.string()),  # of the upright picture, see perceptual_hash
        ("sha256", pa.string()),
        ("num_bytes", pa.int64()),
        ("tar_offset", pa.int64()),  # of the picture's bytes in the tar, for direct reads
        ("extension", pa.string()),
        ("author", pa.string()),
        ("title", pa.string()),
        ("license", pa.string()),
        ("landing_page", pa.string()),
        ("etag", pa.string()),
    ]
)


Row = dict[str, Any]


def usable_row(entry: Row, data: bytes, url: str) -> Row:
    """Return the ledger row, without key and place in a tar, of a photograph that can be used.

    Args:
        entry: its row of a listing.
        data: its encoded bytes.
        url: where they came from.

    Raises:
        ImageDecodeError: the bytes are no picture, or one over the limits.
    """
    # Decoded once, in full: a photograph in the ledger is one that decodes.
    image = decode_image(data, rotation=entry["rotation"])
    return {
        **_credited(entry, url),
        "status": SUCCESS,
        "error_message": "",
        "width": image.width,
        "height": image.height,
        "rotation": entry["rotation"],
        "orientation": image_orientation(data, rotation=entry["rotation"]),
        "phash": perceptual_hash(image),
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "extension": image_extension(data),
    }


def unusable_row(entry: Row, message: str, status: str = FAILED) -> Row:
    """Return the ledger row of an unusable photograph; `message` is `cause` or `cause: detail`."""
    return {
        **_credited(entry, entry["location"]),
        "status": status,
        "error_message": message,
        "num_bytes": 0,
    }


def examined(entry: Row, data: bytes, url: str) -> tuple[Row, bytes]:
    """Return the ledger row of read bytes, usable or not, and the bytes to store (b"" if not)."""
    try:
        return usable_row(entry, data, url), data
    except ImageDecodeError as error:
        return unusable_row(entry, str(error)), b""


class ShardStats(Record):
    """`images/SHARD_stats.json`, in img2dataset's layout: a shard's counts by status and cause."""

    count: int
    successes: int
    failed: int
    status_dict: dict[str, int]
    """By cause; `success` counts those without one."""
    retryable: int | None = absent()
    """Failures that may be gone the next time; None of imported shards, which fetch nothing."""


def shard_stats(rows: Sequence[Row]) -> ShardStats:
    """Return a shard's counts."""
    return ShardStats(
        count=len(rows),
        successes=sum(row["status"] == SUCCESS for row in rows),
        failed=sum(row["status"] == FAILED for row in rows),
        retryable=sum(is_passing(row["error_message"]) for row in rows),
        status_dict=dict(Counter(cause_of(row["error_message"]) or SUCCESS for row in rows)),
    )


def _credited(entry: Row, url: str) -> Row:
    kept = ("image_id", "etag", "author", "title", "license", "landing_page")
    return {**{name: entry[name] for name in kept}, "url": public_url(url)}
