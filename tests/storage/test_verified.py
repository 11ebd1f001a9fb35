from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rdm.errors import StorageError
from rdm.storage import Folder
from rdm.storage.verified import FileDigest, digest_file, read_verified


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path)) if request.param == "local" else Folder(f"memory:/{tmp_path}")


@pytest.fixture
def expected(folder: Folder, tmp_path: Path) -> FileDigest:
    """The digest of a file `data` in the folder."""
    folder.write_bytes("data", b"0123456789")
    (tmp_path / "same").write_bytes(b"0123456789")
    return digest_file(tmp_path / "same")


def test_a_whole_file_is_read(folder: Folder, expected: FileDigest) -> None:
    data = read_verified(folder, "data", expected)
    assert data.dtype == np.uint8
    assert data.tobytes() == b"0123456789"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"012345678", "9 bytes instead of 10"), (b"012345678x", "digest"), (b"", "bytes|read")],
)
def test_another_content_is_refused(
    folder: Folder, expected: FileDigest, content: bytes, message: str
) -> None:
    folder.write_bytes("data", content)
    with pytest.raises(StorageError, match=message) as caught:
        read_verified(folder, "data", expected)
    assert caught.value.where == folder.describe("data")


def test_a_missing_file_is_named(folder: Folder, expected: FileDigest) -> None:
    with pytest.raises(StorageError, match="a file is missing") as caught:
        read_verified(folder, "other", expected)
    assert caught.value.where == folder.describe("other")


def test_a_file_larger_than_a_chunk_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 5_000_000, dtype=np.uint8)
    (tmp_path / "large").write_bytes(data.tobytes())
    digest = digest_file(tmp_path / "large")
    assert digest.num_bytes == 5_000_000
    assert read_verified(Folder(str(tmp_path)), "large", digest)[-1] == data[-1]


def test_a_digest_is_plain_json() -> None:
    assert FileDigest(num_bytes=3, xxh3="00").model_dump() == {"num_bytes": 3, "xxh3": "00"}
