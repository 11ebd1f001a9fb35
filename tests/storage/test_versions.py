from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rdm.errors import ConcurrentWriterError, DatabaseError, StorageError
from rdm.storage import EncoderRecord, Folder, IndexDecision, IndexFacts, Version, VersionStore

HOLD_THE_LOCK = """
import sys
from rdm.storage import Folder, VersionStore
with VersionStore(Folder(sys.argv[1])).writer():
    print("held", flush=True)
    sys.stdin.read()
"""


INDEX = IndexFacts(
    index_key="IVF1,Flat",
    index_param="nprobe=1",
    num_vectors=3,
    dim=2,
    num_bytes=1,
    head_bytes=1,
    head_sha256="",
    recall_at_20=1,
    recall_ci95=0,
    audit_queries=3,
    built_num_vectors=3,
    built_recall_at_20=1,
    decision=IndexDecision(action="built", reason="there was none"),
)


def make_version(number: int) -> Version:
    return Version(
        number=number,
        parent=number - 1 or None,
        source="folder:///x",
        source_fingerprint="f",
        num_images=1,
        num_patches=4,
        next_patch_id=4,
        embedding_dim=2,
        encoder=EncoderRecord(name="e", digest="d", precision="float32", fingerprint={}),
        index=INDEX,
        tombstones=[1],
        deleted_image_ids=[],
        deleted_patches={},
        deleted_sha256=[],
        dropped_patches={},
        oldest_version=1,
        parts=[],
        config={},
    )


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(Folder(tmp_path / "db"))


def test_missing_and_empty_folders_have_no_version(store: VersionStore) -> None:
    assert store.current() is None
    store.folder.make()
    assert store.current() is None


def test_commit_makes_a_version_current_and_keeps_the_old_one(store: VersionStore) -> None:
    store.commit(make_version(1))
    store.commit(make_version(2))
    assert store.current() == make_version(2)
    assert store.require(1) == make_version(1)
    assert store.numbers() == [1, 2]


def test_lost_pointer_is_an_error_where_there_were_updates(store: VersionStore) -> None:
    store.commit(make_version(1))
    store.commit(make_version(2))
    store.folder.delete("manifest.json")
    for look in (store.current, store.require):
        with pytest.raises(
            DatabaseError, match=r"manifest\.json is lost: versions/ holds 000002\.json"
        ):
            look()


def test_version_file_without_pointer_is_not_current(store: VersionStore) -> None:
    store.commit(make_version(1))
    store.folder.write_json("versions/000002.json", make_version(2).model_dump(mode="json"))
    assert store.require().number == 1


def test_version_that_was_not_committed_cannot_be_opened(store: VersionStore) -> None:
    store.commit(make_version(1))
    store.folder.write_json("versions/000002.json", make_version(2).model_dump(mode="json"))
    assert store.numbers() == [1]
    with pytest.raises(DatabaseError, match="no version 2"):
        store.require(2)


def test_dropped_version_cannot_be_opened_although_its_file_is_there(store: VersionStore) -> None:
    store.commit(make_version(1))
    store.commit(make_version(2).model_copy(update={"oldest_version": 2}))
    assert store.numbers() == [2]
    with pytest.raises(DatabaseError, match="no version 1: a compaction dropped it"):
        store.require(1)


class CompactedWhileRead(Folder):
    """A folder in which another process commits version 2 and drops version 1 between two reads."""

    def read_bytes(self, relative: str) -> bytes:
        if relative == "versions/000001.json" and self.exists(relative):
            other = VersionStore(Folder(self.url))
            other.commit(make_version(2).model_copy(update={"oldest_version": 2}))
            other.folder.delete(relative)
        return super().read_bytes(relative)


def test_reader_whose_version_is_dropped_while_it_opens_gets_the_new_one(
    store: VersionStore,
) -> None:
    store.commit(make_version(1))
    assert VersionStore(CompactedWhileRead(store.folder.url)).require().number == 2


def test_missing_version_file_is_an_error_that_names_it(store: VersionStore) -> None:
    store.commit(make_version(1))
    store.folder.delete("versions/000001.json")
    with pytest.raises(StorageError) as caught:
        store.require()
    assert caught.value.where.endswith("versions/000001.json")


def test_draft_is_read_back_and_gone_after_the_commit(store: VersionStore) -> None:
    store.write_draft(make_version(1))
    assert store.draft() == make_version(1)
    assert store.current() is None
    store.commit(make_version(1))
    assert store.folder.names() == ["manifest.json", "versions"]


@pytest.mark.parametrize("found", [1, 3, 5, None])
def test_database_of_another_format_is_refused_by_its_number(
    store: VersionStore, found: int | None
) -> None:
    store.commit(make_version(1))
    manifest = json.loads(store.folder.read_bytes("manifest.json"))
    store.folder.write_json("manifest.json", {**manifest, "format_version": found})
    for refused in (store.current, store.require, store.numbers, store.writer().__enter__):
        with pytest.raises(
            DatabaseError, match=f"has format {found}, this release reads format 4"
        ) as caught:
            refused()
        assert "build it again in a new folder" in caught.value.fix
    assert store.folder.names() == ["manifest.json", "versions"]


def test_equal_versions_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        VersionStore(Folder(tmp_path / name)).commit(make_version(1))
    for path in ("manifest.json", "versions/000001.json"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_tampered_version_is_detected(store: VersionStore) -> None:
    store.commit(make_version(1))
    text = store.folder.read_bytes("versions/000001.json").replace(
        b'"num_images": 1', b'"num_images": 2'
    )
    store.folder.write_bytes("versions/000001.json", text)
    with pytest.raises(DatabaseError, match="differs from what the manifest promises"):
        store.current()


@pytest.mark.parametrize(
    "manifest",
    [
        b"[]",
        b'{"format": "other"}',
        b'{"format": "retrieval-database"}',
        b'{"format": "retrieval-database", "format_version": 5, "current": "versions/000001.json"}',
        b'{"format": "retrieval-database", "format_version": 4}',
        b'{"format": "retrieval-database", "format_version": 4, "current": "a/b"}',
        b'{"format": "retrieval-database", "format_version": 4, "current": "../b"}',
        b"{",
    ],
)
def test_foreign_or_damaged_manifest_is_an_error(store: VersionStore, manifest: bytes) -> None:
    store.folder.write_bytes("manifest.json", manifest)
    with pytest.raises((DatabaseError, StorageError)):
        store.current()


def test_damaged_version_file_is_an_error(store: VersionStore) -> None:
    store.folder.write_bytes("versions/000001.json", b'{"number": 1}')
    with pytest.raises(DatabaseError, match="damaged"):
        store.require(1)


def test_missing_version_lists_those_that_exist(store: VersionStore) -> None:
    store.commit(make_version(1))
    with pytest.raises(DatabaseError, match="no version 7") as caught:
        store.require(7)
    assert caught.value.fix == "versions here: 1"


def test_no_database_says_how_to_make_one(store: VersionStore) -> None:
    with pytest.raises(DatabaseError) as caught:
        store.require()
    assert "rdm database build" in caught.value.fix


def test_foreign_folder_is_refused_and_left_alone(store: VersionStore) -> None:
    store.folder.write_bytes("thesis.tex", b"x")
    with pytest.raises(DatabaseError, match=r"it holds thesis\.tex"), store.writer():
        pass
    assert store.folder.names() == ["thesis.tex"]


def test_part_is_described_by_size_and_digest(store: VersionStore) -> None:
    store.folder.write_bytes("patches/x", b"abc")
    part = store.describe_part("patches", "patches/x", 7)
    assert (part.num_rows, part.num_bytes, part.sha256[:8]) == (7, 3, "ba7816bf")


def test_counts_of_a_version() -> None:
    assert make_version(1).num_live_patches == 3
    assert make_version(1).parts_of("patches") == []


def test_second_writer_is_refused_until_the_first_is_done(store: VersionStore) -> None:
    second = VersionStore(Folder(store.folder.url))
    with (
        store.writer(),
        pytest.raises(ConcurrentWriterError, match=r"process \d+ on"),
        second.writer(),
    ):
        pass
    with second.writer():
        pass


def test_writer_sweeps_what_a_killed_one_left(store: VersionStore) -> None:
    store.folder.write_bytes("patches/x", b"1")
    Path(store.folder.path("patches/.y.12345678.tmp")).write_bytes(b"half")
    with store.writer():
        assert [path.name for path in Path(store.folder.path("patches")).iterdir()] == ["x"]


def test_error_of_the_work_is_not_mistaken_for_one_of_the_lock(store: VersionStore) -> None:
    with pytest.raises(PermissionError), store.writer():
        raise PermissionError(13, "Permission denied", "/photos/x.jpg")


def test_database_at_a_url_cannot_be_written() -> None:
    with (
        pytest.raises(DatabaseError, match="local or mounted"),
        VersionStore(Folder("memory://db")).writer(),
    ):
        pass


def test_writer_in_another_process_is_refused_and_a_killed_one_frees_the_lock(
    store: VersionStore,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, store.folder.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConcurrentWriterError, match=f"process {holder.pid} on"), store.writer():
            pass
        holder.kill()
        holder.wait()
        with store.writer():
            pass


def test_manifest_names_the_format(store: VersionStore) -> None:
    store.commit(make_version(1))
    manifest = json.loads(store.folder.read_bytes("manifest.json"))
    assert (manifest["format"], manifest["format_version"], manifest["current"]) == (
        "retrieval-database",
        4,
        "versions/000001.json",
    )
