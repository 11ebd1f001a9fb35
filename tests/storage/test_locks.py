from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rdm.errors import ConcurrentWriterError
from rdm.storage.locks import is_locked, lock_file


def test_a_lock_is_seen_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with lock_file(path, "is writing"):
        assert is_locked(path)
    assert not is_locked(path)


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with (
        lock_file(tmp_path / "lock", "is writing"),
        pytest.raises(ConcurrentWriterError, match=r"process \d+ .* is w"),
    ):
        lock_file(tmp_path / "lock", "is writing")


def test_who_asks_whether_it_is_locked_refuses_no_holder(tmp_path: Path) -> None:
    path, stop = tmp_path / "lock", threading.Event()

    def ask() -> None:
        while not stop.is_set():
            is_locked(path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(200):
            lock_file(path, "is writing").close()
    finally:
        stop.set()
        asking.join()
