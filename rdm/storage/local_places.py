"""Places on a local disk: for unfinished work, and for copies of remote files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rdm.storage.files import Folder


def cache_path(relative: str) -> Path:
    """Return a path in the user's cache folder (`RDM_CACHE`, by default `~/.cache/rdm`)."""
    return Path(os.environ.get("RDM_CACHE", Path.home() / ".cache" / "rdm")) / relative


def scratch_path(folder: Folder, relative: str) -> Path:
    """Return the place of a folder's unfinished work: in it if it is local, else in the cache.

    Raises:
        StorageError: the path leaves the folder.
    """
    path = Path(folder.path(relative))
    if folder.is_local:
        return path
    return cache_path(f"scratch/{hashlib.sha256(folder.url.encode()).hexdigest()[:24]}/{relative}")
