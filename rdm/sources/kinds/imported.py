"""`import://FORMAT`: the source of a database that was made of embeddings from elsewhere.

Such a database has no photographs to go back to. Its content is its own listing: updates delete,
and add nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from rdm.sources.source import LISTING_SCHEMA, make_listing

_SCHEME = "import://"


def imported_source(kind: str) -> str:
    """Return the specification that an imported database records."""
    return f"{_SCHEME}{kind}"


def is_imported(spec: str) -> bool:
    """Return whether a specification is of an imported database."""
    return spec.startswith(_SCHEME)


def imported_listing(image_ids: Iterable[str]) -> pa.Table:
    """Return the content of an imported database as a listing."""
    rows = [{"image_id": image_id, "location": ""} for image_id in image_ids]
    return make_listing(rows) if rows else LISTING_SCHEMA.empty_table()
