"""`import://FORMAT`: what a database says its source is that was made of embeddings computed
elsewhere.

Such a database has no photographs to go back to. What it holds is its own listing: updates delete,
and add nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from rdm.sources.source import LISTING_SCHEMA, make_listing

_SCHEME = "import://"


def imported_source(kind: str) -> str:
    """Return the specification that such a database records."""
    return f"{_SCHEME}{kind}"


def is_imported(spec: str) -> bool:
    """Return whether a specification is of such a database."""
    return spec.startswith(_SCHEME)


def imported_listing(image_ids: Iterable[str]) -> pa.Table:
    """Return what such a database holds as a listing."""
    rows = [{"image_id": image_id, "location": ""} for image_id in image_ids]
    return make_listing(rows) if rows else LISTING_SCHEMA.empty_table()
