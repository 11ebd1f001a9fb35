"""Databases whose photographs come over HTTP: built, updated and refused for real."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build, update_builder, update_plan
from rdm.database.building.results import BuildResult
from rdm.database.pixels import read_photograph
from rdm.errors import FailureBudgetError, SourceError
from rdm.sources import CropConfig, FetchConfig, decode_image
from rdm.storage import Folder, VersionStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
INLINE = ComputeConfig(dask="inline")
QUICK = FetchConfig(
    allow_private_addresses=True, attempts=2, backoff_seconds=0.05, timeout_seconds=2
)
HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
    "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation\n"
)
METADATA = "/openimages/2018_04/validation/validation-images-with-rotation.csv"
Build = Callable[..., BuildResult]
Serve = Callable[..., Any]
Encoded = Callable[..., bytes]


@pytest.fixture
def build(tmp_path: Path, tiny_encoder: str) -> Build:
    """Return `build(source, **fields)`, which builds the database at `tmp_path / "db"` and returns
    the summary."""

    def run(source: str, **fields: object) -> BuildResult:
        config = BuildConfig.model_validate(
            {
                "source": source,
                "encoder": tiny_encoder,
                "images_per_shard": 5,
                "crop": CropConfig(frame_size=40, patch_size=24),
                "fetch": QUICK,
                **fields,
            }
        )
        return run_build(DatabaseBuilder(str(tmp_path / "db"), config), INLINE)

    return run


def rows_of(root: Path) -> dict[str, dict[str, Any]]:
    folder = Folder(root)
    tables = [folder.read_table(f"images/{name}") for name in folder.names("images", ".parquet")]
    return {row["image_id"]: row for table in tables for row in table.to_pylist()}


def test_update_fetches_what_the_list_gained_and_nothing_where_it_stayed(
    server: Any, answer: Serve, encoded: Encoded, tmp_path: Path, build: Build
) -> None:
    urls = [server.serve(f"/{number}.jpg", answer(encoded(number))) for number in range(4)]
    (tmp_path / "list.txt").write_text("\n".join(urls[:3]))
    assert build(f"urls://{tmp_path}/list.txt").photographs == 3
    server.requests.clear()
    unchanged = run_build(update_builder(str(tmp_path / "db")), INLINE)
    assert (unchanged.unchanged, dict(server.requests)) == (True, {})
    (tmp_path / "list.txt").write_text("\n".join(urls[1:]))
    changed = run_build(update_builder(str(tmp_path / "db")), INLINE)
    assert (changed.version, changed.photographs, dict(server.requests)) == (
        2,
        3,
        {"/3.jpg": 1},
    )


def test_damaged_or_shortened_list_deletes_nothing(
    server: Any, answer: Serve, encoded: Encoded, tmp_path: Path, build: Build
) -> None:
    urls = [server.serve(f"/{number}.jpg", answer(encoded(number))) for number in range(8)]
    path = tmp_path / "list.csv"
    path.write_text("url,caption\n" + "".join(f"{url},a bird\n" for url in urls))
    assert build(f"urls://{path}").photographs == 8
    whole = path.read_text()
    for damaged, message in (
        (whole.replace("3.jpg,a", '3.jpg,"a'), "the quote that opens in line 5 is not closed"),
        (
            whole[: whole.index(urls[4])],
            "4 of the 8 photographs in the database are in no row of the list any more",
        ),
    ):
        path.write_text(damaged)
        for run in (update_plan, lambda builder: run_build(builder, INLINE)):
            with pytest.raises(SourceError, match=message):
                run(update_builder(str(tmp_path / "db")))
    path.write_text(whole)
    assert run_build(update_builder(str(tmp_path / "db")), INLINE).unchanged


def test_lists_as_people_have_them_are_fetched(
    server: Any, answer: Serve, encoded: Encoded, tmp_path: Path, build: Build
) -> None:
    gzipped = gzip.compress(encoded(0))
    server.serve("/gz.jpg", answer(gzipped, headers={"Content-Encoding": "gzip"}))
    server.serve(
        "/x%20gz.jpg", answer(gzip.compress(encoded(1)), headers={"Content-Encoding": "x-gzip"})
    )
    server.serve(
        "/deflate.jpg", answer(zlib.compress(encoded(2)), headers={"Content-Encoding": "deflate"})
    )
    server.serve("/crop.jpg?crop=2669,1999,x0,y0&amp;w=80", answer(encoded(3)))
    server.serve("/caf%C3%A9/%E5%86%99%E7%9C%9F.jpg", answer(encoded(4)))
    location = "/caf\u00e9/\u5199\u771f.jpg".encode().decode("latin-1")
    server.serve("/hop", answer(status=302, headers={"Location": location}))
    server.serve("/%7Cpipe%7B%7D.jpg", answer(encoded(5)))
    paths = [
        "gz.jpg",
        "x gz.jpg",
        "deflate.jpg",
        "crop.jpg?crop=2669,1999,x0,y0&amp;w=80",
        "hop",
        "|pipe{}.jpg",
    ]
    (tmp_path / "list.tsv").write_text(
        "".join(f'"a" caption\t{server.url}/{path}\n' for path in paths)
    )
    summary = build(f"urls://{tmp_path}/list.tsv", min_success_rate=0)
    assert (summary.photographs, summary.causes) == (6, {"success": 6})


def test_too_many_failures_end_the_build_by_cause_and_the_same_command_goes_on(
    server: Any, answer: Serve, encoded: Encoded, tmp_path: Path, build: Build
) -> None:
    urls = [
        server.serve("/a.jpg", answer(encoded(0))),
        server.serve("/gone.jpg", answer(status=404)),
    ]
    urls += [
        server.serve(f"/{n}.jpg", *[answer(status=503)] * 2, answer(encoded(n))) for n in range(2)
    ]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    with pytest.raises(
        FailureBudgetError, match="only 1 of 4 pictures are usable: 2 server error, 1 not found"
    ):
        build(f"urls://{tmp_path}/list.txt", min_success_rate=0.7)
    server.requests.clear()
    summary = build(f"urls://{tmp_path}/list.txt", min_success_rate=0.7)
    assert (summary.photographs, summary.failed, summary.causes) == (
        3,
        1,
        {"success": 3, "not found": 1},
    )
    assert dict(server.requests) == {"/0.jpg": 1, "/1.jpg": 1}


def publish(server: Any, answer: Serve, encoded: Encoded) -> str:
    """Serve five photographs as Open Images does; return the source. The mirror lacks three."""
    lines = []
    for number, (mirrored, md5_of, rotation) in enumerate(
        [(True, 0, "0.0"), (False, 1, ""), (False, 0, "0.0"), (True, 3, "90.0"), (False, 4, "0.0")]
    ):
        image_id, data = f"{number:016x}", encoded(number)
        original = server.url + f"/flickr/{image_id}_o.jpg"
        if mirrored:
            server.serve(f"/bucket/validation/{image_id}.jpg", answer(data))
        if number != 4:
            server.serve(f"/flickr/{image_id}_o.jpg", answer(data))
        checksum = base64.b64encode(hashlib.md5(encoded(md5_of)).digest()).decode()
        lines.append(
            f"{image_id},validation,{original},http://f.example/{number},http://cc.example/by,http://f.example/ann,"
            f'Ann,"A, title",1234,{checksum},,{rotation}\n'
        )
    server.serve(METADATA, answer((HEADER + "".join(lines)).encode(), headers={"ETag": '"1"'}))
    return f"openimages://validation?metadata={server.url}/openimages&mirror={server.url}/bucket"


@pytest.fixture
def openimages(
    server: Any, answer: Serve, encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The source of five published photographs."""
    monkeypatch.setenv("RDM_CACHE", str(tmp_path / "cache"))
    return publish(server, answer, encoded)


def test_open_images_come_from_the_mirror_else_from_the_checked_original(
    server: Any, encoded: Encoded, tmp_path: Path, build: Build, openimages: str
) -> None:
    build(openimages, min_success_rate=0.5)
    rows = rows_of(tmp_path / "db")
    assert [
        (row["url"].removeprefix(server.url), row["error_message"]) for row in rows.values()
    ] == [
        (f"/bucket/validation/{0:016x}.jpg", ""),
        (f"/flickr/{1:016x}_o.jpg", ""),
        (f"/flickr/{2:016x}_o.jpg", "checksum differs"),
        (f"/bucket/validation/{3:016x}.jpg", ""),
        (f"/flickr/{4:016x}_o.jpg", "not found: HTTP 404"),
    ]
    assert {(row["author"], row["license"]) for row in rows.values()} == {
        ("Ann", "http://cc.example/by")
    }
    assert rows[f"{3:016x}"]["landing_page"] == "http://f.example/3"
    del server.requests[METADATA]
    assert set(server.requests.values()) == {1}
    turned = read_photograph(Folder(tmp_path / "db"), "00000", 3)
    assert turned.size == (rows[f"{3:016x}"]["width"], rows[f"{3:016x}"]["height"]) == (40, 48)
    np.testing.assert_array_equal(
        np.asarray(turned), np.rot90(np.asarray(decode_image(encoded(3))))
    )


def test_another_mirror_is_recorded_and_fetches_nothing_again(
    server: Any, answer: Serve, encoded: Encoded, tmp_path: Path, build: Build, openimages: str
) -> None:
    store = VersionStore(Folder(tmp_path / "db"))
    build(openimages, min_success_rate=0.5)
    before = store.current()
    server.requests.clear()
    build(openimages.replace("/bucket", "/elsewhere"), min_success_rate=0.5)
    after = store.current()
    assert before is not None
    assert after is not None
    assert after.source == openimages.replace("/bucket", "/elsewhere")
    assert after.parts == before.parts
    assert set(server.requests) == {METADATA}


def test_dry_run_without_a_trial_counts_the_list_and_fetches_no_photograph(
    server: Any, tmp_path: Path, openimages: str
) -> None:
    command = [
        Path(sys.executable).with_name("rdm"),
        "database",
        "build",
        "--root",
        tmp_path / "db",
    ]
    arguments = ["--source", f"{openimages}&limit=4", "--dry-run", "--trial", "0", "--json"]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    plan = json.loads(result.stdout)
    assert (plan["photographs"], plan["new"], plan["gone"]) == (4, 4, 0)
    assert dict(server.requests) == {METADATA: 1}
    assert not (tmp_path / "db").exists()
