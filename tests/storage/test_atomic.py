from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rdm.errors import StorageError
from rdm.storage.atomic import atomic_path, storage_errors


def test_new_file_is_absent_until_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"1")
        assert not target.exists()
    assert target.read_bytes() == b"1"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_told_as_such(code: int) -> None:
    with pytest.raises(StorageError, match="disk is full"), storage_errors("/data"):
        raise OSError(code, "x")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_missing_permission_is_told_as_such(code: int) -> None:
    with pytest.raises(StorageError, match="cannot write here"), storage_errors("/data"):
        raise OSError(code, "x")


def test_other_errors_pass_through() -> None:
    with pytest.raises(TimeoutError), storage_errors("/data"):
        raise OSError(errno.ETIMEDOUT, "x")
