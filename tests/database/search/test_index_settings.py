from __future__ import annotations

import pytest

from rdm.database.search.index_settings import IndexConfig, choose_key
from rdm.errors import UsageError


@pytest.mark.parametrize("field", ["build_memory", "max_index_memory"])
def test_memory_that_is_no_size_is_a_usage_error(field: str) -> None:
    with pytest.raises(UsageError, match=f"{field}: Value error, 'lots' is not a size"):
        IndexConfig().with_overrides([f"{field}=lots"])


@pytest.mark.parametrize(
    ("rows", "memory", "key"),
    [
        (600, "8GB", "IVF1,Flat"),
        (5000, "8GB", "IVF256,Flat"),
        (100_000, "8GB", "IVF1024,Flat"),
        (1_000_000, "8GB", "IVF4096_HNSW32,Flat"),
        (1_000_000, "2GB", "IVF4096_HNSW32,SQfp16"),
        (20_900_000, "12GB", "IVF16384_HNSW32,SQ8"),
        (20_900_000, "8GB", "OPQ256_768,IVF65536_HNSW32,PQ256x8"),
    ],
)
def test_kind_of_index_is_the_most_exact_that_fits(rows: int, memory: str, key: str) -> None:
    assert choose_key(rows, 512, IndexConfig(max_index_memory=memory)) == key
