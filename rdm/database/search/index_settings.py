"""Settings of the approximate index, and the kind of index that fits into the allowed memory."""

from __future__ import annotations

import math
import re

from pydantic import Field

from rdm.config import ByteSize, Config, parse_bytes
from rdm.errors import DatabaseError

LARGE_ROWS = 1_000_000  # from here on the kind of index is chosen here, not by autofaiss


TRAIN_ROWS_PER_LIST = 64  # faiss wants 39 at least


class IndexConfig(Config):
    """Settings of the index: its size, its recall, and when it is built anew."""

    max_index_memory: ByteSize = Field(
        default="8GB", description="greatest size of the index, such as 8GB"
    )
    build_memory: ByteSize = Field(
        default="4GB", description="memory for the rows that the index is trained on"
    )
    shard_rows: int = Field(
        default=1_000_000, ge=1, description="rows that one worker adds to its shard of the index"
    )
    target_recall: float = Field(
        default=0.98, ge=0, le=1, description="recall@20 up to which more lists are probed"
    )
    min_recall: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="recall@20 against exact search under which the build fails",
    )
    audit_queries: int = Field(
        default=500, ge=1, description="database rows that the recall is measured on"
    )
    seed: int = Field(default=0, description="chooses the audited rows")
    drift_margin: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="recall@20 may fall by so much in updates before the index is built anew",
    )
    max_growth: float = Field(
        default=2,
        gt=1,
        description="the rows may grow or shrink by this factor before the index is built anew",
    )
    keep_versions: int = Field(
        default=3,
        ge=2,
        description="versions that keep an index file; readers of older ones compare with "
        "every vector",
    )


def check_fits(num_rows: int, dim: int, config: IndexConfig) -> None:
    """Raise DatabaseError where no index of so many vectors fits into the allowed memory."""
    if num_rows:
        train_rows(choose_key(num_rows, dim, config), dim, config)


def choose_key(num_rows: int, dim: int, config: IndexConfig) -> str:
    """Return the kind of index in faiss's words: the most exact one that `max_index_memory` allows.

    Below `LARGE_ROWS` rows it is autofaiss's choice. From there on autofaiss quantizes products
    (OPQ, PQ) however much memory there is; here that comes last, after vectors in 32, 16 and 8 bits
    per number.

    Raises:
        DatabaseError: nothing fits.
    """
    from autofaiss.external.optimize import get_optimal_index_keys_v2

    memory = parse_bytes(config.max_index_memory)

    # The most exact codes that fit: every row costs its code and an id of 8 bytes; every list its
    # centroid, with 64 links of the graph that finds it.
    if num_rows >= LARGE_ROWS:
        lists = 2 ** round(math.log2(4 * math.sqrt(num_rows)))
        for codes, code_bytes in (("Flat", 4 * dim), ("SQfp16", 2 * dim), ("SQ8", dim)):
            if num_rows * (code_bytes + 8) + lists * 4 * (dim + 64) <= memory:
                return f"IVF{lists}_HNSW32,{codes}"

    keys = get_optimal_index_keys_v2(num_rows, dim, f"{memory}B", should_be_memory_mappable=True)
    # autofaiss may propose uncompressed vectors that do not fit: these are refused.
    if keys and (",PQ" in keys[0] or num_rows * (4 * dim + 8) <= memory):
        return keys[0]
    raise DatabaseError(
        f"no index of {num_rows} vectors fits into {config.max_index_memory}: too little memory",
        fix="raise index.max_index_memory",
    )


def train_rows(key: str, dim: int, config: IndexConfig) -> int:
    """Return the number of random rows to train on: `TRAIN_ROWS_PER_LIST` a list, if they fit.

    Raises:
        DatabaseError: there is no memory for one row per list.
    """
    match = re.search(r"IVF(\d+)", key)
    lists = int(match[1]) if match else 1
    # 8 bytes a number: float32, and a copy of it where vectors are rotated.
    fitting = parse_bytes(config.build_memory) // (8 * dim)
    if fitting < lists:
        raise DatabaseError(
            f"too little memory to train {lists} lists: index.build_memory is "
            f"{config.build_memory}",
            fix="raise index.build_memory",
        )
    return min(lists * TRAIN_ROWS_PER_LIST, fitting)
