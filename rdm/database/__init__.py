"""The retrieval database: patches, embeddings, index, neighbors, updates, and the facade over them."""

from rdm.database.build import BuildConfig, DatabaseBuilder
from rdm.database.facade import PatchRecord, RetrievalDatabase
from rdm.database.neighbor_table import NeighborConfig, NeighborTable
from rdm.database.neighbors import build_neighbors

__all__ = [
    "BuildConfig",
    "DatabaseBuilder",
    "NeighborConfig",
    "NeighborTable",
    "PatchRecord",
    "RetrievalDatabase",
    "build_neighbors",
]
