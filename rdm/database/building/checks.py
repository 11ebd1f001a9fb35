"""Checks that refuse a plan, or a stage's result, before it becomes the next version."""

from __future__ import annotations

from collections import Counter

from rdm.database.building.results import IngestFacts
from rdm.database.changes.plan import SourceDiff
from rdm.database.search.index_settings import check_fits
from rdm.database.settings import BuildConfig, differing_fixed, settings_of
from rdm.encoders import load_encoder
from rdm.errors import DatabaseError, FailureBudgetError, SourceError
from rdm.sources.ledger import SUCCESS
from rdm.storage import Folder, Version

MANY_VANISHED = 10  # fewer vanished photographs are never taken for an incomplete source
FEW_DELISTED = 3  # the same of the rows of a list, which seldom lose many by intent
_LISTS = ("urls://", "openimages://")
SHOWN = 3  # ids that a message names


def check_settings(folder: Folder, parent: Version, config: BuildConfig) -> None:
    """Raise DatabaseError where a setting differs that the first build fixed."""
    if differing := differing_fixed(config, parent):
        raise DatabaseError(
            f"the database was built with another {', '.join(differing)}",
            where=folder.url,
            fix="give --root a new folder, or the configuration in its run.json",
        )


def check_vanished(diff: SourceDiff, config: BuildConfig) -> None:
    """Raise SourceError where the source lacks so many photographs that it may be incomplete.

    A disk that is not mounted looks like an emptied folder, a damaged list like a shorter one.
    """
    if diff.is_known_source:
        return
    vanished, held = len(diff.vanished_images), len(diff.held.living_images)
    # A list has its own, stricter share: nothing else shows that it was cut short.
    if is_listed(config):
        _check_delisted(diff, config, vanished, held)
    elif vanished >= MANY_VANISHED and vanished > config.max_vanished_share * held:
        raise SourceError(
            f"{vanished} of the {held} photographs in the database are no longer in the source",
            where=config.source,
            fix="see that the source is complete; if they are to be deleted, --set "
            "max_vanished_share=1",
        )


def is_listed(config: BuildConfig) -> bool:
    """Return whether the rows of a list or table say which photographs there are."""
    return config.source.startswith(_LISTS) or config.crop.mode == "boxes"


def delisted(diff: SourceDiff, config: BuildConfig) -> list[str]:
    """Return the sorted ids of held photographs that the list no longer has."""
    if diff.is_known_source or not is_listed(config) or not diff.vanished_images:
        return []
    return sorted(diff.vanished_images)


def _check_delisted(diff: SourceDiff, config: BuildConfig, vanished: int, held: int) -> None:
    """Raise SourceError where the list lost more rows than `max_delisted_share` of the database."""
    if vanished <= max(FEW_DELISTED, config.max_delisted_share * held):
        return

    # A list that was cut short looks like photographs that were taken down.
    first = sorted(diff.vanished_images)[:SHOWN]
    more = f" and {vanished - len(first)} more" if vanished > len(first) else ""
    has_table = config.crop.mode == "boxes" and config.boxes.path
    raise SourceError(
        f"{vanished} of the {held} photographs in the database are in no row of the list any "
        f"more, which has {diff.source.num_rows}: {', '.join(first)}{more}",
        where=config.boxes.path if has_table else config.source,
        fix="see that the list is whole; if they are to be deleted, --set max_delisted_share=1",
    )


def check_budget(
    folder: Folder,
    parent: Version | None,
    config: BuildConfig,
    ingested: IngestFacts,
    known_failures: int,
) -> None:
    """Raise FailureBudgetError where too few of the requested photographs are usable.

    Args:
        folder: of the database.
        parent: the version before; a first build needs one photograph, and no fixed number of
            failures is tolerated.
        config: the limits.
        ingested: what became of the photographs.
        known_failures: failures that are in the ledgers already: these stop nothing.
    """
    # Photographs that fail again as before were known to: an update must not stop for them.
    failed, successes = ingested.failed - known_failures, ingested.successes
    asked = successes + failed
    too_few = successes < config.min_success_rate * asked

    # An update may bring a handful of photographs, of which one failure is a large share.
    tolerated = config.tolerated_failures if parent is not None else 0
    if (parent is None and successes == 0) or (too_few and failed > tolerated):
        causes = [pair for pair in Counter(ingested.causes).most_common() if pair[0] != SUCCESS]
        summary = ", ".join(f"{number} {cause}" for cause, number in causes)
        raise FailureBudgetError(
            f"only {successes} of {asked} pictures are usable: {summary}",
            where=f"{config.source}; a row for each in {folder.describe('images')}",
            fix="mend the source, or accept fewer with --set min_success_rate=0.5; "
            "the same command fetches again what may have passed",
        )


def check_index_fits(parent: Version | None, config: BuildConfig, num_patches: int) -> None:
    """Raise DatabaseError where the index must be built anew and does not fit into its memory.

    This is known before patches are embedded, which takes the hours.

    An index that is extended grows without a look at the memory.
    """
    if parent is None or settings_of(parent).index != config.index:
        dim = load_encoder(config.encoder).embedding_dim if parent is None else parent.embedding_dim
        check_fits(num_patches, dim, config.index)


def check_left(folder: Folder, num_patches: int) -> None:
    """Raise DatabaseError where no patch would be left."""
    if num_patches == 0:
        raise DatabaseError(
            "no patch would be left",
            where=folder.url,
            fix="keep at least one photograph, or remove the whole folder",
        )
