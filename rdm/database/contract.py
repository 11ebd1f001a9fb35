"""The data contract of a retrieval database on one page: its files, their columns and records.

manifest.json                             Manifest: which version is current; replaced last
versions/000007.json                      Version: parts, tombstones, encoder, index, settings
run.json                                  BuildConfig (database.settings) of the current version
images/00000.tar .parquet _stats.json     pixels, ledger (sources.ledger), ShardStats: the layout
                                          of img2dataset
patches/patches_0000.parquet              PATCH_SCHEMA: a row for each patch id, in order
dropped/patches_0000.parquet              DROPPED_SCHEMA: patches that filters left out
dropped/duplicates_000007.parquet         DUPLICATE_SCHEMA: photographs that resemble another one
img_emb/img_emb_0000.npy                  float16 [rows, dim], unit norm; row order = patch ids
metadata/metadata_0000.parquet            METADATA_COLUMNS: row j describes row j of the npy
index/000007/knn.index index_infos.json   the index of a version, and its IndexFacts
index/knn.index, image.index              the newest one again, where clip-retrieval looks
neighbors/NAME/000007/queryset.json       QuerySetFacts (database.neighbors.table) of a query set
neighbors/NAME/000007/00000.parquet .npy  its neighbors, and its crops' unit vectors
announced.json                            Announcement (database.changes.announcements)
changes.html                              changes of the newest update, if the flow wrote it
_markers/STAGE/SHARD.json                 Marker (storage.completion) of a finished shard
"""

from __future__ import annotations

import re

import pyarrow as pa

from rdm.storage import Version
from rdm.storage.records import version_path

__all__ = ["version_path"]

CORNERS = ("x0", "y0", "x1", "y1")  # of a patch, in pixels of its photograph

PATCH_SCHEMA = pa.schema(
    [
        ("patch_id", pa.int64()),
        ("image_id", pa.string()),
        ("image_shard", pa.string()),
        ("image_row", pa.int32()),  # row of images/SHARD.parquet
        *((corner, pa.int32()) for corner in CORNERS),
    ]
)
"""Columns of a patch part; where patches are boxes, there is also their `label`."""

DROPPED_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_row", pa.int32()),
        *((corner, pa.int32()) for corner in CORNERS),
        ("reason", pa.string()),  # "cause: detail"
    ]
)
"""Columns of `dropped/patches_PART.parquet`: the patches of a shard that the filters leave out."""

DUPLICATE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # of the photograph that is left out
        ("duplicate_of", pa.string()),  # the first photograph by id that looks like it
        ("num_bits", pa.int16()),  # in how many bits their hashes differ
    ]
)
"""Columns of a version's table of near-duplicates; with the `etag` of the left-out photograph."""

ORIGIN_COLUMNS = ("url", "author", "title", "license", "landing_page", "sha256")
"""Which photograph a patch is of, and whose: ledger columns, repeated for each patch."""

METADATA_COLUMNS = ("image_path", *ORIGIN_COLUMNS, "norm")
"""Columns of a metadata part, beside the ids; `norm` is the length of the raw vector."""

SHARD_KINDS: tuple[str, ...] = ("images", "ledger", "patches", "embeddings", "metadata")
"""The parts of one image shard: a version has as many of each kind, in the same order."""
DUPLICATES_KIND = "duplicates"  # of a version's part: photographs that resemble another one
INDEX_KINDS = ("index", "infos")
# Of a query set: its description, neighbors, and crops' vectors.
TABLE_KINDS = ("queryset", "neighbors", "queries")
SEARCHED_KINDS = ("embeddings", "index", "patches", "ledger")  # the parts that decide a lookup

PHOTOGRAPH_DIRECTORIES = ("images", "patches", "dropped", "img_emb", "metadata")
PART_DIRECTORIES = (*PHOTOGRAPH_DIRECTORIES, "index", "neighbors")
RUN = "run.json"
# Of the newest update, if one was written: a version that adds or removes deletes it.
CHANGES_PAGE = "changes.html"
ANNOUNCED = "announced.json"
REMOVED_DIGESTS = "_markers/removed"  # lists of digests for the workers, while an update runs
INDEX_SCRATCH = "_markers/index"

INDEX_NAME, INFOS_NAME = "knn.index", "index_infos.json"
# Where clip-retrieval's and autofaiss's tools look: the newest version's files, a second name.
PUBLISHED = "index"
# Where `clip-retrieval back` looks for the same index: beside `metadata/`.
SERVED_NAME = "image.index"


def image_paths(stem: str) -> tuple[str, str, str]:
    """Return the paths of an image shard's tar, its ledger and its counts."""
    return f"images/{stem}.tar", f"images/{stem}.parquet", f"images/{stem}_stats.json"


def stats_path(images: str) -> str:
    """Return the path of the counts that belong to the tar of an image shard."""
    return images.removesuffix(".tar") + "_stats.json"


def patches_path(part: int) -> str:
    """Return the path of a patch part."""
    return f"patches/patches_{part:04d}.parquet"


def dropped_path(part: int) -> str:
    """Return the path of a part's left-out patches; it exists where there are any."""
    return f"dropped/patches_{part:04d}.parquet"


def duplicates_path(version: int) -> str:
    """Return the path of a version's table of near-duplicates."""
    return f"dropped/duplicates_{version:06d}.parquet"


def embeddings_path(part: int) -> str:
    """Return the path of an embedding part."""
    return f"img_emb/img_emb_{part:04d}.npy"


def metadata_path(part: int) -> str:
    """Return the path of the table that describes the rows of an embedding part."""
    return f"metadata/metadata_{part:04d}.parquet"


def compacted_path(path: str, number: int) -> str:
    """Return a part's name with a compaction's version; it sorts where the old name did."""
    # A second compaction replaces the mark of the first.
    return re.sub(r"(_c\d{6,})?(\.\w+)$", rf"_c{number:06d}\2", path)


def version_place(number: int) -> str:
    """Return the folder for an index that this version makes."""
    return f"{PUBLISHED}/{number:06d}"


def index_place(version: Version) -> str:
    """Return the folder that holds a version's index."""
    return version.parts_of("index")[0].path.rpartition("/")[0]


def table_place(name: str, version: int) -> str:
    """Return the folder for a query set's table that this version writes."""
    return f"neighbors/{name}/{version:06d}"


def queryset_path(name: str, version: int) -> str:
    """Return the path of the description of a query set's table."""
    return f"{table_place(name, version)}/queryset.json"


def neighbor_paths(name: str, version: int, stem: str) -> tuple[str, str]:
    """Return the paths of a shard's neighbors, and of its crops' unit vectors."""
    return (
        f"{table_place(name, version)}/{stem}.parquet",
        f"{table_place(name, version)}/{stem}.npy",
    )


def query_set_of(path: str) -> str:
    """Return the name of the query set whose table a path belongs to."""
    return path.split("/")[1]
