from __future__ import annotations

import os
import pickle
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.config import Record
from rdm.errors import MissingDependencyError, StorageError, UsageError
from rdm.storage import Folder, sha256_file


@pytest.fixture(params=["local", "memory"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    """A folder on a disk, and one on a filesystem that is not local."""
    monkeypatch.setenv("RDM_CACHE", str(tmp_path / "cache"))
    return Folder(tmp_path / "root" if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_json_reads_back(folder: Folder) -> None:
    folder.write_json("a/b.json", {"é": [1, None]})
    assert folder.read_json("a/b.json") == {"é": [1, None]}


def test_equal_json_gives_equal_bytes(folder: Folder) -> None:
    folder.write_json("a.json", {"x": 1, "y": 2})
    folder.write_json("b.json", {"y": 2, "x": 1})
    assert folder.read_bytes("a.json") == folder.read_bytes("b.json")


def test_table_reads_back_with_chosen_columns(folder: Folder) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    folder.write_table("t.parquet", table)
    assert folder.read_table("t.parquet") == table
    assert folder.read_table("t.parquet", ["b"]) == table.select(["b"])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float16).reshape(3, 2),
        np.zeros((0, 4), np.float16),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ],
    ids=["small", "empty", "fortran"],
)
def test_array_reads_back(folder: Folder, array: np.ndarray) -> None:
    folder.write_array("x.npy", array)
    found = folder.read_array("x.npy")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_names_are_sorted_and_filtered(folder: Folder) -> None:
    for name in ("b.json", "a.json", "c.txt", "d.json.tmp"):
        folder.write_bytes(f"x/{name}", b"1")
    assert folder.names("x", ".json") == ["a.json", "b.json"]
    assert folder.names("missing") == []


def test_local_copy_of_a_replaced_file_is_the_new_one(folder: Folder) -> None:
    folder.write_bytes("x", b"old")
    assert folder.local("x").read_bytes() == b"old"
    folder.write_bytes("x", b"newer")
    assert folder.local("x").read_bytes() == b"newer"


def test_delete_takes_a_tree_and_does_not_mind_a_missing_one(folder: Folder) -> None:
    folder.write_bytes("x/y/z", b"1")
    folder.delete("x")
    folder.delete("x")
    assert not folder.exists("x/y/z")


def test_linked_file_keeps_its_bytes_when_the_first_name_gets_others(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_bytes("a/x", b"1")
    folder.link("a/x", "b/y")
    folder.write_bytes("a/x", b"2")
    assert (folder.read_bytes("a/x"), folder.read_bytes("b/y")) == (b"2", b"1")


def test_link_replaces_what_has_the_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name in ("x", "y"):
        folder.write_bytes(name, name.encode())
    for _ in range(2):
        folder.link("x", "y")
    assert folder.read_bytes("y") == b"x"
    assert folder.names() == ["x", "y"]


def test_files_are_listed_with_their_paths(folder: Folder) -> None:
    for name in ("a/b/x", "a/y", "z"):
        folder.write_bytes(name, b"1")
    assert folder.files("a") == ["a/b/x", "a/y"]
    assert folder.files("none") == []


def test_empty_directories_are_deleted_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "d").mkdir()
    (tmp_path / "a" / "d" / "x").write_bytes(b"1")
    Folder(tmp_path).delete_empty("a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["d"]


@pytest.mark.parametrize("method", ["read_bytes", "read_json", "read_table", "read_array"])
def test_missing_file_is_a_storage_error_that_names_it(folder: Folder, method: str) -> None:
    with pytest.raises(StorageError) as caught:
        getattr(folder, method)("none/x")
    assert caught.value.where == f"{folder.url}/none/x"


@pytest.mark.parametrize("method", ["read_json", "read_table", "read_array"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe{", b"PAR1 and more PAR1", b"\x93NUMPY\x01\x00"]
)
def test_damaged_file_is_a_storage_error(folder: Folder, method: str, content: bytes) -> None:
    folder.write_bytes("x", content)
    with pytest.raises(StorageError):
        getattr(folder, method)("x")


def test_truncated_array_is_a_storage_error(folder: Folder) -> None:
    folder.write_array("x.npy", np.zeros((10, 4)))
    folder.write_bytes("x.npy", folder.read_bytes("x.npy")[:-1])
    with pytest.raises(StorageError):
        folder.read_array("x.npy")


def test_pickled_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StorageError):
        Folder(tmp_path).read_array("x.npy")


@pytest.mark.parametrize("relative", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "a\0b", ".."])
def test_path_out_of_the_folder_is_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(StorageError, match="leaves its folder"):
        Folder(tmp_path).path(relative)


@given(st.text(max_size=20))
def test_path_stays_inside_or_is_refused(relative: str) -> None:
    try:
        found = Folder("/base/root").path(relative)
    except StorageError:
        return
    assert os.path.normpath(found) == "/base/root" or os.path.normpath(found).startswith(
        "/base/root/"
    )


def test_folder_survives_pickling(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(Folder(tmp_path))).url == str(tmp_path)


def test_trailing_slash_does_not_matter(tmp_path: Path) -> None:
    assert Folder(f"{tmp_path}/").url == Folder(tmp_path).url


@pytest.mark.parametrize("url", ["", "folder:///x", "nonsense://x"])
def test_unusable_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        Folder(url).exists()


def test_url_whose_package_is_missing_names_the_package() -> None:
    with pytest.raises(MissingDependencyError, match="Install ossfs") as caught:
        Folder("oss://bucket/folder").exists()
    assert "s3fs for s3" in caught.value.fix


def test_exception_while_writing_leaves_the_old_file_and_no_temporary(
    folder: Folder, tmp_path: Path
) -> None:
    folder.write_bytes("x", b"old")

    def interrupted() -> None:
        with folder.writing("x") as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert folder.read_bytes("x") == b"old"
    assert not list(tmp_path.rglob("*.tmp"))


def test_sweep_deletes_only_temporaries(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_bytes("a/x", b"1")
    (tmp_path / "a" / ".x.1234abcd.tmp").write_bytes(b"half")
    assert folder.sweep_temporaries() == 1
    assert folder.names("a") == ["x"]
    assert Folder(tmp_path / "missing").sweep_temporaries() == 0


def test_file_in_the_place_of_a_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(StorageError):
        Folder(tmp_path / "x").make()
    with pytest.raises(StorageError):
        Folder(tmp_path / "x").write_bytes("y/z", b"1")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert (
        sha256_file(tmp_path / "x")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "table", "array"])
def test_full_disk_keeps_the_old_file(small_disk: Path, kind: str) -> None:
    folder = Folder(small_disk)
    noise = np.random.default_rng(0).integers(0, 2**31, 200_000)
    big = {"bytes": noise.tobytes(), "table": pa.table({"x": noise}), "array": noise}[kind]
    old = {"bytes": b"old", "table": pa.table({"x": [1]}), "array": np.ones(2)}[kind]
    write = getattr(folder, f"write_{kind}")
    write("x", old)
    before = folder.read_bytes("x")
    with pytest.raises(StorageError, match="disk is full"):
        write("x", big)
    assert folder.read_bytes("x") == before
    assert os.listdir(small_disk) == ["x"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ext", "{here}/ext"),
        ("./a/../ext/", "{here}/ext"),
        ("file://ext", "file://{here}/ext"),
        ("file:///data/ext", "file:///data/ext"),
        ("/data/ext", "/data/ext"),
        ("memory://ext", "memory://ext"),
        ("s3://bucket/ext", "s3://bucket/ext"),
    ],
)
def test_folder_is_meant_from_where_it_was_named_and_not_from_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pickle.dumps(Folder(given))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(folder).url == meant.format(here=tmp_path)


class Size(Record):
    width: int


def test_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_record("size.json", Size(width=3))
    assert folder.read_bytes("size.json") == b'{\n "width": 3\n}\n'
    assert folder.read_record("size.json", Size) == Size(width=3)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"width": "wide"}', b'{"width": 3, "more": 4}']
)
def test_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    folder = Folder(tmp_path)
    folder.write_bytes("size.json", content)
    with pytest.raises(StorageError) as caught:
        folder.read_record("size.json", Size)
    assert caught.value.where == str(tmp_path / "size.json")
