from __future__ import annotations

from pathlib import Path

import pytest

from rdm.errors import StorageError
from rdm.storage import Folder
from rdm.storage.local_places import cache_path, scratch_path


def test_scratch_of_a_local_folder_lies_in_it(tmp_path: Path) -> None:
    assert scratch_path(Folder(tmp_path), "_markers/fetch/a") == tmp_path / "_markers/fetch/a"


def test_scratch_of_a_remote_folder_lies_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDM_CACHE", str(tmp_path))
    first, second = (scratch_path(Folder(f"memory://bucket/{name}"), "a") for name in ("x", "y"))
    assert first != second
    assert first.is_relative_to(tmp_path / "scratch")


def test_scratch_cannot_leave_its_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="leaves its folder"):
        scratch_path(Folder(tmp_path), "../a")


def test_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDM_CACHE", str(tmp_path / "cache"))
    assert cache_path("a/b") == tmp_path / "cache/a/b"
