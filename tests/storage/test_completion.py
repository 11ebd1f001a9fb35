from __future__ import annotations

from pathlib import Path

import pytest

from rdm.storage import Folder, Markers


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
    [b"", b"{", b"[]", b'{"key": "key"}', b"\xff\xfe", b'{"key": "key", "outputs": {"../a": 5}, "stats": {}}'],
)
def test_damaged_marker_is_done_again(folder: Folder, content: bytes) -> None:
    folder.write_bytes("_markers/embed/0000.json", content)
    assert Markers(folder, "embed").find("0000", "key") is None
