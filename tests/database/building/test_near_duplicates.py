from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rdm.database.building.near_duplicates import DUPLICATE_SCHEMA, near_duplicates


def brute_force(ids: list[str], hashes: np.ndarray, max_bits: int) -> list[tuple[str, str, int]]:
    bits, rows = (
        np.unpackbits(hashes, axis=1).astype(int),
        sorted(range(len(ids)), key=ids.__getitem__),
    )
    found = []
    for position, row in enumerate(rows):
        for earlier in rows[:position]:
            if (distance := int(np.abs(bits[row] - bits[earlier]).sum())) <= max_bits:
                found.append((ids[row], ids[earlier], distance))
                break
    return found


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 40), max_bits=st.integers(0, 15))
def test_same_as_comparing_every_pair(seed: int, count: int, max_bits: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (4, 16), dtype=np.uint8)
    hashes = base[rng.integers(0, 4, count)]
    # up to 20 bits away from one of four centers, so that both answers are common
    for row in hashes:
        flipped = rng.choice(128, rng.integers(0, 21), replace=False)
        row ^= np.packbits(np.isin(np.arange(128), flipped))
    ids = [f"p{number:02d}" for number in rng.permutation(count)]
    table = near_duplicates(ids, hashes.reshape(-1, 16), max_bits)
    assert table.schema == DUPLICATE_SCHEMA
    assert [tuple(row.values()) for row in table.to_pylist()] == brute_force(ids, hashes, max_bits)


@given(seed=st.integers(0, 2**32 - 1), max_bits=st.integers(0, 3))
def test_added_photographs_bring_no_photograph_back(seed: int, max_bits: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = np.packbits(rng.random((30, 128)) < 0.02, axis=1)
    ids = [f"p{number:02d}" for number in rng.permutation(30)]
    few = set(near_duplicates(ids[:20], hashes[:20], max_bits)["image_id"].to_pylist())
    assert few <= set(near_duplicates(ids, hashes, max_bits)["image_id"].to_pylist())


def test_many_equal_hashes_are_one_group() -> None:
    ids = [f"p{number:05d}" for number in range(20_000)]
    table = near_duplicates(ids, np.zeros((20_000, 16), np.uint8), 6)
    assert table["image_id"].to_pylist() == ids[1:]
    assert table["duplicate_of"].combine_chunks().equals(pa.array(["p00000"] * 19_999))
