"""Latent caches and neighbors of random numbers, in the files that training reads, for benchmarks
of reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rdm.database.neighbors.exclusion import Lookup, no_neighbors
from rdm.database.neighbors.table import NeighborConfig, QuerySetFacts, with_lookup
from rdm.sources import QuerySetConfig
from rdm.storage import (
    EncoderRecord,
    Folder,
    IndexDecision,
    IndexFacts,
    Part,
    Version,
    VersionStore,
)
from rdm.storage.verified import digest_file
from rdm.training.data.latent_cache import (
    CONFIG_PATH,
    FORMAT,
    FORMAT_VERSION,
    CacheConfig,
    LatentCache,
)
from rdm.training.data.latent_tar import write_tar
from rdm.training.data.training_data import Shard

QUERIES = QuerySetConfig(source="folder:///random")
DIGEST = "0" * 16
SHAPE = (3, 64, 64)  # of rdm-imagenet's latents, float16


class Latents:
    """The latents of a cache as training data, without neighbors."""

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache
        self.shards = [Shard(stem, cache.counts[stem]) for stem in cache.stems]

    def load_shard(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the latents of a shard, verified."""
        return {"latents": np.ascontiguousarray(self.cache.latents(self.cache.stems[index]))}

    def keys(self, index: int) -> list[str]:
        """Return the names of the rows."""
        return self.cache.rows(self.cache.stems[index]).column("key").to_pylist()


def write_cache(
    root: Path, num_shards: int, rows: int, shape: tuple[int, ...] = SHAPE
) -> LatentCache:
    """Write a cache of random latents, two rows (a crop and its mirror image) per key."""
    folder = Folder(str(root))
    root.mkdir(parents=True)
    stems = [f"{number:05d}" for number in range(num_shards)]
    draw = np.random.default_rng(0)
    for stem in stems:
        write_tar(root / f"{stem}.tar", stem, draw.normal(size=(rows, *shape)).astype(np.float16))
        keys = [f"{stem}-{row // 2}/0" for row in range(rows)]
        images = [key.rpartition("/")[0] for key in keys]
        flipped = [bool(row % 2) for row in range(rows)]
        folder.write_table(
            f"{stem}.parquet", pa.table({"key": keys, "image_id": images, "flipped": flipped})
        )
    names = [f"{stem}.{kind}" for stem in stems for kind in ("tar", "parquet")]
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": CacheConfig(queries=QUERIES).model_dump(mode="json"),
        "queries_digest": DIGEST,
        "latents_digest": DIGEST,
        "content": "latents",
        "stems": stems,
        "num_latents": num_shards * rows,
        "counts": [rows] * num_shards,
        "files": {name: digest_file(root / name).model_dump() for name in names},
    }
    folder.write_json(CONFIG_PATH, description)
    return LatentCache(str(root))


def write_database(root: Path, cache: LatentCache, num_patches: int, dim: int, k: int) -> None:
    """Write a database of random embeddings, with random neighbors of a cache's crops."""
    folder = Folder(str(root))
    draw = np.random.default_rng(1)
    vectors = draw.normal(scale=dim**-0.5, size=(num_patches, dim)).astype(np.float16)
    folder.write_array("img_emb/img_emb_0000.npy", vectors)
    ids = pa.array(np.arange(num_patches))
    empty = pa.array([""] * num_patches)
    folder.write_table("patches/patches_0000.parquet", pa.table({"patch_id": ids}))
    norms = pa.array(np.ones(num_patches, np.float32))
    columns = {**dict.fromkeys(("image_path", "url", "author", "license"), empty), "norm": norms}
    folder.write_table("metadata/metadata_0000.parquet", pa.table(columns))
    store = VersionStore(folder)
    parts = [
        store.describe_part("embeddings", "img_emb/img_emb_0000.npy", num_patches),
        store.describe_part("patches", "patches/patches_0000.parquet", num_patches),
        store.describe_part("metadata", "metadata/metadata_0000.parquet", num_patches),
        *_write_table(folder, cache, num_patches, k),
    ]
    store.commit(_version(parts, num_patches, dim))


def _write_table(folder: Folder, cache: LatentCache, num_patches: int, k: int) -> list[Part]:
    draw = np.random.default_rng(2)
    config = NeighborConfig(queries=QUERIES, k_stored=k)
    store = VersionStore(folder)
    facts = QuerySetFacts(
        name="train",
        queries=QUERIES,
        queries_digest=DIGEST,
        config=config,
        stems=cache.stems,
        num_queries=0,
        failures=[],
        encoder_digest=DIGEST,
        mean_top1_similarity=0,
        num_excluded=0,
    )
    folder.write_record("neighbors/train/queryset.json", facts)
    parts = [store.describe_part("queryset", "neighbors/train/queryset.json", 1)]
    for stem in cache.stems:
        keys = list(dict.fromkeys(cache.rows(stem).column("key").to_pylist()))
        found = draw.integers(0, num_patches, (len(keys), k)), np.zeros((len(keys), k), np.float32)
        path = f"neighbors/train/{stem}.parquet"
        table = with_lookup(
            pa.table({"key": keys}), Lookup(found, no_neighbors(len(keys), 0)), config
        )
        folder.write_table(path, table)
        queries = f"neighbors/train/{stem}.npy"
        folder.write_array(queries, np.zeros((len(keys), 0), np.float16))
        parts.append(store.describe_part("neighbors", path, len(keys)))
        parts.append(store.describe_part("queries", queries, len(keys)))
    return parts


def _version(parts: list[Part], num_patches: int, dim: int) -> Version:
    return Version(
        number=1,
        parent=None,
        source="folder:///random",
        source_fingerprint="",
        num_images=num_patches,
        num_patches=num_patches,
        next_patch_id=num_patches,
        embedding_dim=dim,
        encoder=EncoderRecord(name="random", digest=DIGEST, precision="float32", fingerprint={}),
        index=IndexFacts(
            index_key="none",
            index_param="",
            num_vectors=num_patches,
            dim=dim,
            num_bytes=0,
            head_bytes=0,
            head_sha256="",
            recall_at_20=0,
            recall_ci95=0,
            audit_queries=0,
            built_num_vectors=num_patches,
            built_recall_at_20=0,
            decision=IndexDecision(action="none", reason="nothing is searched"),
        ),
        tombstones=[],
        deleted_image_ids=[],
        deleted_patches={},
        deleted_sha256=[],
        dropped_patches={},
        oldest_version=1,
        parts=parts,
        config={},
    )
