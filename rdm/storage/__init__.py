"""Files: fsspec folders, atomic writes, shard markers, versioned manifests."""

from rdm.storage.files import Folder, sha256_file
from rdm.storage.manifest import Box, Part, Version, VersionStore
from rdm.storage.markers import Marker, Markers

__all__ = ["Box", "Folder", "Marker", "Markers", "Part", "Version", "VersionStore", "sha256_file"]
