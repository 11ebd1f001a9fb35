"""Files: fsspec folders, atomic writes, shard markers, versioned manifests."""

from rdm.storage.completion import Marker, Markers
from rdm.storage.files import Folder, sha256_file
from rdm.storage.versions import Box, Part, Version, VersionStore

__all__ = ["Box", "Folder", "Marker", "Markers", "Part", "Version", "VersionStore", "sha256_file"]
