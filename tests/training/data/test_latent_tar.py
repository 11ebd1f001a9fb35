from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdm.training.data.latent_tar import tar_rows, write_tar

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@given(SHAPES, st.integers(1, 12), st.sampled_from([np.float16, np.int32]))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    count: int,
    dtype: type[np.float16] | type[np.int32],
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.tar"
    arrays = np.arange(count * np.prod(shape)).reshape(count, *shape).astype(dtype)
    write_tar(path, "00007", arrays)
    rows = tar_rows(np.fromfile(path, np.uint8), count)
    assert rows.dtype == dtype
    assert np.array_equal(rows, arrays)


def test_any_tar_reader_finds_the_members(tmp_path: Path) -> None:
    arrays = np.arange(12, dtype=np.int32).reshape(3, 4)
    write_tar(tmp_path / "rows.tar", "00007", arrays)
    with tarfile.open(tmp_path / "rows.tar") as tar:
        assert tar.getnames() == ["00007000000.npy", "00007000001.npy", "00007000002.npy"]
        read = [
            np.load(io.BytesIO(file.read())) for member in tar if (file := tar.extractfile(member))
        ]
    assert np.array_equal(read, arrays)


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    arrays = np.arange(12, dtype=np.int32).reshape(3, 4)
    write_tar(tmp_path / "one.tar", "0", arrays)
    write_tar(tmp_path / "two.tar", "0", arrays)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_a_short_tar_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "rows.tar", "0", np.zeros((3, 4), np.int32))
    data = np.fromfile(tmp_path / "rows.tar", np.uint8)
    with pytest.raises(ValueError, match="shorter than 100 members"):
        tar_rows(data, 100)


@pytest.mark.parametrize(
    "data", [np.zeros(2048, np.uint8), np.full(2048, 7, np.uint8), np.zeros(0, np.uint8)]
)
def test_what_is_no_tar_is_refused(data: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="tar"):
        tar_rows(data, 1)
