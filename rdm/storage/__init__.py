"""Files: fsspec folders, atomic writes, shard markers, versioned manifests."""

from rdm.storage.completion import Marker, Markers, NoStats, ShardWork, resumable
from rdm.storage.files import Folder, sha256_file
from rdm.storage.records import Box, EncoderRecord, IndexDecision, IndexFacts, Part, Version
from rdm.storage.tombstones import PartRows, living_rows, part_rows
from rdm.storage.versions import VersionStore

__all__ = [
    "Box",
    "EncoderRecord",
    "Folder",
    "IndexDecision",
    "IndexFacts",
    "Marker",
    "Markers",
    "NoStats",
    "Part",
    "PartRows",
    "ShardWork",
    "Version",
    "VersionStore",
    "living_rows",
    "part_rows",
    "resumable",
    "sha256_file",
]
