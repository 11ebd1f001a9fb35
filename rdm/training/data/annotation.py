"""What annotations of a latent cache share: a description that belongs to one state of the latents,
and rows of photographs that many latents share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rdm.config import Record
from rdm.errors import CacheError
from rdm.training.data.latent_cache import LatentCache


class AnnotationInfo(Record):
    """What every description of an annotation says."""

    format_version: int
    cache_digest: str


InfoT = TypeVar("InfoT", bound=AnnotationInfo)


def open_annotation(
    cache: LatentCache, path: str, model: type[InfoT], *, what: str, format_version: int, fix: str
) -> InfoT:
    """Return the description of an annotation, which fits the cache as it is.

    Args:
        cache: whose annotation.
        path: of the description, in the cache's folder.
        model: its record.
        what: the annotation in words, such as `captions`.
        format_version: that this code writes.
        fix: the command that annotates.

    Raises:
        CacheError: the cache has none, or one of another format or of other latents.
    """
    where = cache.folder.describe(path)
    if not cache.folder.exists(path):
        raise CacheError(f"the cache has no {what}", where=where, fix=fix)

    # The version first: the record of another format may not even parse.
    stored = cache.folder.read_json(path)
    found = stored.get("format_version") if isinstance(stored, dict) else None
    require_same(what, "format", found, format_version, where=where, fix=fix)
    info = cache.folder.read_record(path, model)
    require_same(
        what, "state of the latents", info.cache_digest, cache.digest, where=where, fix=fix
    )
    return info


def require_same(what: str, of: str, have: object, want: object, *, where: str, fix: str) -> None:
    """Raise CacheError where an annotation is of another format, network or the like than asked."""
    if have != want:
        raise CacheError(
            f"the cache's {what} are of another {of}: {have}, not {want}",
            where=where,
            fix=fix,
        )


def photographs_of_rows(cache: LatentCache, stem: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return a shard's photographs, and for each latent the number of its photograph among them."""
    images = cache.rows(stem).column("image_id").combine_chunks().dictionary_encode()
    return images.dictionary.to_pylist(), images.indices.to_numpy()
