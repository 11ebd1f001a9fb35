from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pytest
from PIL import Image, PngImagePlugin

from rdm.sources.causes import is_passing
from rdm.sources.ledger import (
    LEDGER_SCHEMA,
    SKIPPED,
    examined,
    shard_stats,
    unusable_row,
    usable_row,
)
from rdm.sources.source import make_listing

SECRET_URL = "http://example.org/a.jpg?token=abc"


def entry(**fields: object) -> dict[str, object]:
    row = {
        "image_id": "a",
        "location": SECRET_URL,
        "etag": "1",
        "author": "Ann",
        "title": "A crow",
        "license": "CC",
        **fields,
    }
    return make_listing([row]).to_pylist()[0]


@pytest.mark.parametrize(
    ("message", "passing"),
    [
        ("too many requests: HTTP 429", True),
        ("server error: HTTP 503", True),
        ("timed out", True),
        ("cut short: IncompleteRead", True),
        ("cannot be read: Permission denied", True),
        ("not found: HTTP 404", False),
        ("opted out: X-Robots-Tag", False),
        ("broken picture: OSError: x", False),
        ("", False),
    ],
)
def test_only_what_may_be_gone_the_next_time_is_passing(message: str, passing: bool) -> None:
    assert is_passing(message) is passing


def test_usable_row_holds_the_upright_size_and_the_credits(encoded: Callable[..., bytes]) -> None:
    row = usable_row(entry(rotation=90), encoded(1, size=(48, 40)), SECRET_URL)
    assert (row["width"], row["height"], row["rotation"], row["extension"]) == (40, 48, 90, "jpg")
    assert (row["author"], row["title"], row["license"], row["url"]) == (
        "Ann",
        "A crow",
        "CC",
        "http://example.org/a.jpg?token=***",
    )


def test_broken_picture_is_a_row_with_its_cause() -> None:
    row, data = examined(entry(), b"<html>", SECRET_URL)
    assert (row["status"], row["error_message"], data) == ("failed", "not a picture", b"")


def test_stats_count_by_status_and_cause(encoded: Callable[..., bytes]) -> None:
    rows = [
        usable_row(entry(), encoded(1), SECRET_URL),
        unusable_row(entry(), "server error: HTTP 500"),
        unusable_row(entry(), "server error: HTTP 502"),
        unusable_row(entry(), "not found: HTTP 404"),
        unusable_row(entry(), "opted out: X-Robots-Tag", SKIPPED),
    ]
    assert shard_stats(rows).to_json() == {
        "count": 5,
        "successes": 1,
        "failed": 3,
        "retryable": 2,
        "status_dict": {"success": 1, "server error": 2, "not found": 1, "opted out": 1},
    }


def test_rows_fit_the_schema(encoded: Callable[..., bytes]) -> None:
    rows = [usable_row(entry(), encoded(1), SECRET_URL), unusable_row(entry(), "not found")]
    table = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
    assert table["num_bytes"].to_pylist() == [len(encoded(1)), 0]


def test_picture_with_a_long_text_has_a_row_with_its_orientation(
    picture: Callable[..., Image.Image],
) -> None:
    info, tags, buffer = PngImagePlugin.PngInfo(), Image.Exif(), io.BytesIO()
    info.add_text("parameters", "x=1 " * 600_000, zip=True)
    tags[0x0112] = 6
    picture(0).save(buffer, "PNG", pnginfo=info, exif=tags)
    row, data = examined(entry(), buffer.getvalue(), SECRET_URL)
    assert data == buffer.getvalue()
    assert (row["status"], row["width"], row["height"], row["orientation"]) == (
        "success",
        40,
        48,
        6,
    )
    assert row["extension"] == "png"
