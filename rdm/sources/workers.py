"""Check that workers on other machines see the disks of a job, before work is handed out."""

from __future__ import annotations

import os
import uuid

from rdm.compute.pool import Pool
from rdm.errors import StorageError
from rdm.sources.open import local_part
from rdm.storage import Folder
from rdm.storage.atomic import TEMPORARY_SUFFIX


def require_visible(
    pool: Pool, folder: Folder, *, source: str = "", others: tuple[str | None, ...] = ()
) -> None:
    """Raise StorageError unless every worker sees the disk to write to and the files to read.

    Args:
        pool: the workers.
        folder: where they write. A file shows that they see this folder, not another of its name.
        source: specification of the photographs that they read; empty: none.
        others: further local files and folders that they read; None is passed over.
    """
    # A text that is no path here, such as a pattern of names, cannot be checked there.
    asked = [path for path in (local_part(source), *others) if path and os.path.exists(path)]

    # A folder of the same name may exist on the worker's own disk: look for a fresh file in it.
    token = f".workers-{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
    if folder.is_local:
        folder.write_bytes(token, b"")
        asked.append(folder.path(token))

    try:
        unseen = pool.unseen(asked)
    finally:
        if folder.is_local:
            folder.delete(token)

    if unseen:
        name, path = unseen[0]
        more = len({worker for worker, _ in unseen}) - 1
        raise StorageError(
            f"the Dask worker {name} does not see a path of this job"
            + (f" (nor do {more} more workers)" if more else ""),
            where=folder.url if folder.is_local and path == folder.path(token) else path,
            fix="mount the disk under the same path on every machine of the cluster, or give "
            "a path that all share",
        )
