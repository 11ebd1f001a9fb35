"""Pictures that were drawn from a photograph, found by their recipes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rdm.config import Record
from rdm.errors import SourceError, UsageError
from rdm.sampling.output import CONTACT, INDEX, JOURNAL, stored_records
from rdm.sampling.recipe.picture_file import read_recipe
from rdm.sampling.recipe.record import Credit, SampleRecord


class FoundPicture(Record):
    """A picture that was drawn from a photograph."""

    path: str
    patches: tuple[str, ...]
    """Those of the photograph that conditioned it, as DATABASE:ID; none where it was made from
    another picture that they conditioned."""
    certain: bool
    """False where the file has no room for all of its neighbors: it may be one of the others."""


class FoundPictures(Record):
    """What was found in a folder."""

    pictures: tuple[FoundPicture, ...]
    examined: int
    """Pictures with a recipe."""
    without_recipe: tuple[str, ...]
    """PNGs that carry none, and have none beside them: nothing can be said of them."""


def pictures_of(photograph: str, folder: Path) -> FoundPictures:
    """Return the pictures in a folder and below that were drawn from a photograph.

    Args:
        photograph: its image id; its SHA-256, or the first twelve digits of it and more; or a patch
            of it, as 77 or DATABASE:77.
        folder: where drawn pictures are.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError("the folder does not exist", where=folder, fix="check its name")

    # A recipe without room for all its neighbors may hide the photograph: listed as uncertain.
    found: dict[str, FoundPicture] = {}
    drawn: set[str] = set()
    children: list[tuple[str, SampleRecord]] = []
    examined, without = 0, []
    for path, record in _recipes_below(folder):
        if record is None:
            without.append(str(path))
            continue
        examined += 1
        of_it = [one for one in record.looked_at if _names(photograph, one)]
        if of_it or record.neighbors_left_out:
            patches = tuple(f"{one.database}:{one.patch_id}" for one in of_it)
            found[str(path)] = FoundPicture(path=str(path), patches=patches, certain=bool(of_it))
        if of_it:
            drawn.add(record.pixels_sha256)
        elif record.parents:
            children.append((str(path), record))

    # Pictures that were made from such pictures, and those made from these.
    while made := [one for one in children if drawn.intersection(one[1].parents)]:
        for path, record in made:
            found[path] = FoundPicture(path=path, patches=(), certain=True)
            drawn.add(record.pixels_sha256)
        children = [one for one in children if one not in made]

    # In order of path, so that two searches of a folder can be compared.
    pictures = tuple(found[path] for path in sorted(found))
    return FoundPictures(pictures=pictures, examined=examined, without_recipe=tuple(without))


def _names(photograph: str, credit: Credit) -> bool:
    """Return whether a text names the photograph of a neighbor."""
    if photograph in (credit.image_id, str(credit.patch_id)):
        return True
    if photograph == f"{credit.database}:{credit.patch_id}":
        return True
    is_digest = re.fullmatch(r"[0-9a-f]{12,64}", photograph.lower())
    return bool(is_digest and credit.sha256.startswith(photograph.lower()))


def _recipes_below(folder: Path) -> Iterator[tuple[Path, SampleRecord | None]]:
    """Yield each PNG in a folder and below, with its recipe where it has one."""
    pictures = sorted(folder.rglob("*.png"))
    for parent, paths in groupby(pictures, key=lambda path: path.parent):
        beside: dict[str, SampleRecord] | None = None
        for path in paths:
            # A sheet of the pictures beside it, which are examined themselves.
            if path.name == CONTACT and (parent / INDEX).exists():
                continue
            record = _carried(path)
            # Sites take texts out of PNGs, and a text has no room for hundreds of neighbors.
            if record is None or record.neighbors_left_out:
                beside = _beside(parent) if beside is None else beside
                record = beside.get(path.name, record)
            yield path, record


def _carried(path: Path) -> SampleRecord | None:
    try:
        return read_recipe(path)
    except SourceError:
        return None


def _beside(folder: Path) -> dict[str, SampleRecord]:
    """Return the recipes that a folder's lists have, by the pictures' names."""
    return {
        record.file: record
        for name in (INDEX, JOURNAL)
        if (folder / name).exists()
        for record in stored_records(folder / name)
    }
