from __future__ import annotations

from pathlib import Path

import pytest

from rdm.config import Record
from rdm.storage import Folder, Markers, ShardWork, resumable


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.write_bytes("out/a", b"12345")
    return folder


def test_finished_shard_is_found_with_its_stats(folder: Folder) -> None:
    Markers(folder, "embed").write("0000", "key", ["out/a"], {"rows": 3})
    marker = Markers(folder, "embed").find("0000", "key")
    assert marker is not None
    assert (marker.stats, marker.outputs) == ({"rows": 3}, {"out/a": 5})


def test_missing_marker_is_not_found(folder: Folder) -> None:
    assert Markers(folder, "embed").find("0000", "key") is None


def test_other_stage_does_not_vouch(folder: Folder) -> None:
    Markers(folder, "embed").write("0000", "key", ["out/a"], {})
    assert Markers(folder, "ingest").find("0000", "key") is None


def test_changed_key_is_done_again(folder: Folder) -> None:
    Markers(folder, "embed").write("0000", "key", ["out/a"], {})
    assert Markers(folder, "embed").find("0000", "other") is None


@pytest.mark.parametrize("damage", [b"1234", b"123456"])
def test_output_of_another_size_is_done_again(folder: Folder, damage: bytes) -> None:
    markers = Markers(folder, "embed")
    markers.write("0000", "key", ["out/a"], {})
    folder.write_bytes("out/a", damage)
    assert markers.find("0000", "key") is None


def test_missing_output_is_done_again(folder: Folder) -> None:
    markers = Markers(folder, "embed")
    markers.write("0000", "key", ["out/a"], {})
    folder.delete("out/a")
    assert markers.find("0000", "key") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"key": "key"}',
        b"\xff\xfe",
        b'{"key": "key", "outputs": {"../a": 5}, "stats": {}}',
    ],
)
def test_damaged_marker_is_done_again(folder: Folder, content: bytes) -> None:
    folder.write_bytes("_markers/embed/0000.json", content)
    assert Markers(folder, "embed").find("0000", "key") is None


class Rows(Record):
    rows: int


def shard_of(folder: Folder, key: str = "key") -> ShardWork[Rows]:
    return ShardWork(folder, "embed", "0000", key, Rows)


def refused() -> tuple[list[str], Rows]:
    raise AssertionError("the work was done again")


def test_resumable_shard_is_done_once(folder: Folder) -> None:
    assert resumable(shard_of(folder), lambda: (["out/a"], Rows(rows=3))) == Rows(rows=3)
    assert resumable(shard_of(folder), refused) == Rows(rows=3)


def test_resumable_shard_of_another_key_is_done_again(folder: Folder) -> None:
    resumable(shard_of(folder), lambda: (["out/a"], Rows(rows=3)))
    assert resumable(shard_of(folder, "other"), lambda: (["out/a"], Rows(rows=4))) == Rows(rows=4)


def test_resumable_shard_may_be_done_again_by_its_stats(folder: Folder) -> None:
    resumable(shard_of(folder), lambda: ([], Rows(rows=3)))
    assert resumable(shard_of(folder), refused, redo=lambda stats: stats.rows < 3) == Rows(rows=3)
    assert resumable(
        shard_of(folder), lambda: ([], Rows(rows=4)), redo=lambda stats: stats.rows < 4
    ) == Rows(rows=4)


def test_stats_of_another_kind_vouch_for_nothing(folder: Folder) -> None:
    Markers(folder, "embed").write("0000", "key", [], {"pictures": 3})
    assert resumable(shard_of(folder), lambda: ([], Rows(rows=4))) == Rows(rows=4)


def test_failed_work_leaves_no_marker(folder: Folder) -> None:
    with pytest.raises(AssertionError):
        resumable(shard_of(folder), refused)
    assert Markers(folder, "embed").find("0000", "key") is None
