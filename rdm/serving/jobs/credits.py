"""Whom pictures are credited to, as their databases are now: what was removed is told no more."""

from __future__ import annotations

from collections.abc import Mapping

from rdm.config import Record
from rdm.sampling.recipe.credits import credits_text
from rdm.sampling.recipe.record import Credit, SampleRecord
from rdm.serving.databases import OpenDatabase
from rdm.serving.jobs.records import StoredImage
from rdm.serving.lookup import DatabaseVersion


class CreditLine(Credit):
    """Whom one neighbor of a picture is credited to."""

    is_removed: bool


class Credits(Record):
    """Whom a picture is credited to: the photographs that it looked at."""

    picture: str
    label: str
    databases: tuple[DatabaseVersion, ...]
    neighbors: tuple[CreditLine, ...]
    conditioned_on_removed: bool
    note: str
    """What holds for whole databases."""
    text: str
    """All of it as plain text, to copy."""


def is_removed(credit: Credit, opened: Mapping[str, OpenDatabase]) -> bool:
    """Return whether a photograph was removed since a picture looked at it."""
    found = opened.get(credit.database)
    return found is not None and credit.patch_id in found.removed


def present_recipe(record: SampleRecord, opened: Mapping[str, OpenDatabase]) -> SampleRecord:
    """Return a recipe without the photographs that were removed since; they are counted.

    Args:
        record: as the picture was drawn.
        opened: its databases at their newest versions, those that are served.
    """
    kept = tuple(one for one in record.neighbors if not is_removed(one, opened))
    gone = len(record.neighbors) - len(kept)
    changes: dict[str, object] = {
        "neighbors": kept,
        "neighbors_left_out": record.neighbors_left_out + gone,
    }
    if (negative := record.negative) is not None:
        left = tuple(one for one in negative.neighbors if not is_removed(one, opened))
        changes["negative"] = negative.model_copy(update={"neighbors": left})
    return record.model_copy(update=changes)


def credits_of_image(image: StoredImage, opened: Mapping[str, OpenDatabase]) -> Credits:
    """Return whom a picture is credited to.

    Args:
        image: the picture.
        opened: its databases at their newest versions, those that are served.
    """
    # As the databases say now: a photograph may have been removed since it was drawn.
    record = SampleRecord.model_validate_json(image.recipe)
    lines = tuple(_line(one, opened) for one in record.neighbors)
    num_removed = sum(line.is_removed for line in lines)

    listed = [author for one in opened.values() for author in one.authors]
    text = credits_text([present_recipe(record, opened)], listed)
    if num_removed:
        text += f"{num_removed} of the photographs were removed on request.\n"

    # Each note once, however many databases it goes with.
    notes = dict.fromkeys(note for one in opened.values() if (note := credit_note(one)))
    return Credits(
        picture=image.id,
        label=image.label,
        databases=image.databases,
        neighbors=lines,
        conditioned_on_removed=num_removed > 0,
        note=" ".join(notes),
        text=text,
    )


def _line(credit: Credit, opened: Mapping[str, OpenDatabase]) -> CreditLine:
    if not is_removed(credit, opened):
        return CreditLine(**credit.model_dump(), is_removed=False)
    return CreditLine(
        patch_id=credit.patch_id,
        database=credit.database,
        similarity=credit.similarity,
        image_id="",
        author="",
        license="",
        url="",
        box=(0, 0, 0, 0),
        is_removed=True,
    )


def credit_note(opened: OpenDatabase) -> str:
    """Return what a database's source says of all its photographs together."""
    if not opened.authors:
        return ""
    return (
        f"The source names the {len(opened.authors)} authors of these photographs in one list, "
        "not photograph by photograph."
    )
