from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rdm.sources import open_source
from rdm.sources.ingest import LEDGER_SCHEMA, IngestTask, ingest_shard
from rdm.sources.kinds import local
from rdm.storage import Folder

OUTPUTS = ("images/00000.tar", "images/00000.parquet", "images/00000_stats.json")


def task_of(photos: Path, root: Path) -> IngestTask:
    source = f"folder://{photos}"
    return IngestTask(Folder(root), "00000", source, open_source(source).listing())


@pytest.fixture
def mixed(photos: Path, encoded: Callable[..., bytes], picture: Callable[..., Image.Image]) -> Path:
    """Twelve photographs, of which two are broken, and one file that is no picture."""
    (photos / "p01.jpg").write_bytes(b"")
    (photos / "p02.jpg").write_bytes(encoded(2)[:300])
    (photos / "p03.jpg").write_bytes(encoded(3, "PNG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(4).save(buffer, "JPEG", exif=exif)
    (photos / "p04.jpg").write_bytes(buffer.getvalue())
    (photos / "notes.txt").write_text("x")
    return photos


def test_every_file_has_a_ledger_row(mixed: Path, tmp_path: Path) -> None:
    stats = ingest_shard(task_of(mixed, tmp_path / "db"))
    table = Folder(tmp_path / "db").read_table("images/00000.parquet")
    assert table.schema == LEDGER_SCHEMA
    assert table["image_id"].to_pylist() == [
        "notes.txt",
        *(f"p{number:02d}.jpg" for number in range(12)),
    ]
    status = dict(zip(table["image_id"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert {name for name, value in status.items() if value != "success"} == {
        "notes.txt",
        "p01.jpg",
        "p02.jpg",
    }
    assert status["notes.txt"] == "skipped"
    assert (stats.count, stats.successes, stats.failed) == (13, 10, 2)
    assert stats.status_dict == {
        "success": 10,
        "empty file": 1,
        "broken picture": 1,
        "not a picture by its name": 1,
    }


def test_bytes_are_found_at_their_offset_and_in_the_tar(mixed: Path, tmp_path: Path) -> None:
    ingest_shard(task_of(mixed, tmp_path / "db"))
    folder = Folder(tmp_path / "db")
    data = folder.read_bytes("images/00000.tar")
    with tarfile.open(folder.local("images/00000.tar"), "r:") as tar:
        members = {member.name: member for member in tar}
        rows = [
            row
            for row in folder.read_table("images/00000.parquet").to_pylist()
            if row["status"] == "success"
        ]
        assert list(members) == [f"{row['key']}.{row['extension']}" for row in rows]
        for row in rows:
            original = (mixed / row["image_id"]).read_bytes()
            assert data[row["tar_offset"] : row["tar_offset"] + row["num_bytes"]] == original
            assert row["sha256"] == hashlib.sha256(original).hexdigest()
            assert members[f"{row['key']}.{row['extension']}"].mtime == 0


def test_size_is_that_of_the_upright_picture_and_extension_that_of_the_bytes(
    mixed: Path, tmp_path: Path
) -> None:
    ingest_shard(task_of(mixed, tmp_path / "db"))
    rows = {
        row["image_id"]: row
        for row in Folder(tmp_path / "db").read_table("images/00000.parquet").to_pylist()
    }
    assert (rows["p04.jpg"]["width"], rows["p04.jpg"]["height"]) == (40, 48)
    assert (rows["p03.jpg"]["extension"], rows["p03.jpg"]["width"]) == ("png", 48)


def test_two_runs_give_equal_bytes(mixed: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ingest_shard(task_of(mixed, tmp_path / name))
    for path in OUTPUTS:
        assert Folder(tmp_path / "a").read_bytes(path) == Folder(tmp_path / "b").read_bytes(path)


def test_finished_shard_is_not_done_again(mixed: Path, tmp_path: Path) -> None:
    task = task_of(mixed, tmp_path / "db")
    stats = ingest_shard(task)
    for path in mixed.iterdir():
        path.unlink()
    assert ingest_shard(task) == stats


def test_truncated_shard_is_done_again(mixed: Path, tmp_path: Path) -> None:
    task = task_of(mixed, tmp_path / "db")
    ingest_shard(task)
    whole = task.folder.read_bytes(OUTPUTS[0])
    task.folder.write_bytes(OUTPUTS[0], whole[:-10240])
    ingest_shard(task)
    assert task.folder.read_bytes(OUTPUTS[0]) == whole


def test_file_that_vanished_after_listing_gets_a_row(photos: Path, tmp_path: Path) -> None:
    task = task_of(photos, tmp_path / "db")
    (photos / "p05.jpg").unlink()
    stats = ingest_shard(task)
    assert stats.status_dict == {"success": 11, "cannot be read": 1}


def rows_of(root: Path) -> dict[str, tuple[str, str]]:
    rows = Folder(root).read_table("images/00000.parquet").to_pylist()
    return {row["image_id"]: (row["status"], row["error_message"]) for row in rows}


def test_file_that_can_be_read_again_is_stored_by_the_same_task(
    photos: Path, tmp_path: Path
) -> None:
    link = photos / "p05.jpg"
    link.rename(tmp_path / "p05.jpg")
    link.symlink_to(photos / "target.jpg")
    task = task_of(photos, tmp_path / "db")
    assert ingest_shard(task).retryable == 1
    (tmp_path / "p05.jpg").rename(photos / "target.jpg")
    (photos / "p06.jpg").unlink()
    assert ingest_shard(task).successes == 12  # what was stored is not read again


def test_pipe_named_like_a_picture_is_skipped(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(photos / "x.jpg")
    ingest_shard(task_of(photos, tmp_path / "db"))
    assert rows_of(tmp_path / "db")["x.jpg"] == ("skipped", "not a regular file")


def test_file_over_the_limit_of_bytes_is_not_read(photos: Path, tmp_path: Path) -> None:
    os.truncate(photos / "p05.jpg", local.MAX_BYTES + 1)
    ingest_shard(task_of(photos, tmp_path / "db"))
    assert rows_of(tmp_path / "db")["p05.jpg"] == ("failed", "too large: over 500000000 bytes")


def test_linked_folder_has_a_row(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / "birds").symlink_to(tmp_path / "elsewhere")
    ingest_shard(task_of(photos, tmp_path / "db"))
    assert rows_of(tmp_path / "db")["birds"] == (
        "skipped",
        "linked folder: name its target as a source of its own",
    )


def test_link_to_nothing_is_told_from_one_that_leads_out(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"1")
    (photos / "nothing.jpg").symlink_to(tmp_path / "gone.jpg")
    (photos / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    ingest_shard(task_of(photos, tmp_path / "db"))
    rows = rows_of(tmp_path / "db")
    assert rows["nothing.jpg"] == ("failed", "cannot be read: the link leads to nothing")
    assert rows["out.jpg"] == ("failed", "leads out of the folder: out.jpg")


def test_name_with_a_colon_is_a_picture(photos: Path, tmp_path: Path) -> None:
    (photos / "p00.jpg").rename(photos / "12:30.jpg")
    assert ingest_shard(task_of(photos, tmp_path / "db")).successes == 12


def test_members_of_a_webdataset_are_laid_down(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in sorted(photos.iterdir()):
            tar.add(path, path.name)
    source = f"webdataset://{tmp_path}/a.tar"
    listing = open_source(source).listing()
    assert (
        ingest_shard(IngestTask(Folder(tmp_path / "db"), "00000", source, listing)).successes == 12
    )


def test_bytes_of_a_removed_photograph_are_refused(tmp_path: Path, photos: Path) -> None:
    folder, data = Folder(tmp_path / "db"), (photos / "p03.jpg").read_bytes()
    folder.write_json("removed.json", [hashlib.sha256(data).hexdigest()])
    stats = ingest_shard(replace(task_of(photos, tmp_path / "db"), refused="removed.json"))
    assert stats.status_dict == {"success": 11, "removed on request": 1}
    assert data[-200:] not in (tmp_path / "db" / "images" / "00000.tar").read_bytes()
