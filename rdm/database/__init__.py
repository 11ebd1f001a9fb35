"""The retrieval database: patches, embeddings, index, neighbors, updates, and their reader."""

from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.neighbors.lookup import build_neighbors
from rdm.database.neighbors.table import NeighborConfig, NeighborTable
from rdm.database.patch_record import PatchRecord
from rdm.database.reader import RetrievalDatabase

__all__ = [
    "BuildConfig",
    "DatabaseBuilder",
    "NeighborConfig",
    "NeighborTable",
    "PatchRecord",
    "RetrievalDatabase",
    "build_neighbors",
]
