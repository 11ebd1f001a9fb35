"""Provenance of a resumed run: the same data, and perhaps a later database version."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rdm.errors import JobError, TrainingError
from rdm.generators.provenance import Provenance

logger = logging.getLogger(__name__)

_FIXED = {
    "queries_digest": "query set",
    "latents_digest": "first stage",
    "encoder_digest": "encoder",
    "cache_digest": "latent cache",
    "text_encoder_digest": "text network",
    "class_names": "list of classes",
    "cache_rows": "number of latents (the cache was built again since)",
    "photographs_digest": "set of photographs",
}


def resumed_provenance(recorded: Provenance, opened: Provenance, where: object) -> Provenance:
    """Return a resumed run's provenance, with the database versions that it saw before.

    An update of the database between two starts is taken up, because what was deleted must not
    condition any more; it is written down, because weights do not forget.
    `database.earlier_versions` lists the versions.

    Args:
        recorded: the checkpoint's provenance.
        opened: that of the inputs which this start was given.
        where: the checkpoint, for messages.

    Raises:
        TrainingError: latents, first stage, encoder, query set or photographs are not those of the
            checkpoint.
    """
    differing = [
        words for name, words in _FIXED.items() if getattr(recorded, name) != getattr(opened, name)
    ]
    if differing:
        raise TrainingError(
            f"the checkpoint was trained with another {' and another '.join(differing)}",
            where=where,
            fix="give the --cache and --database, or the --source, that the run began with, "
            "or --out a new folder",
        )

    # The database alone may have changed; weights keep what earlier versions taught them.
    before, now = recorded.database, opened.database
    if before is None or now is None:
        return opened

    seen = before.earlier_versions
    if before.version != now.version:
        logger.warning(
            "the database has version %d now; until here the run saw %d",
            now.version,
            before.version,
        )
        seen = (*seen, before.version)
    return opened.model_copy(update={"database": now.model_copy(update={"earlier_versions": seen})})


def require_same_inputs(provenance: Provenance, least: Callable[[int], int]) -> None:
    """Raise JobError on every rank where two opened different inputs.

    Args:
        provenance: of what this rank opened.
        least: returns the least of the ranks' values; every rank calls it.
    """
    # 15 hexadecimal digits are 60 bits, which an int64 holds with its sign. All are equal where the
    # least is the greatest, and the greatest is the negative of the least of the negatives.
    digest = int(provenance.digest()[:15], 16)
    if least(digest) != -least(-digest):
        raise JobError(
            "the ranks did not open the same inputs",
            where=provenance.values(),
            fix="run the same command again; cache, database and photographs must be the "
            "same on every machine (copies "
            "with their times: cp -p), and stay as they are while a job starts",
        )
