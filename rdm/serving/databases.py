"""The databases that a server looks things up in: each at its newest version, swapped live."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdm.compute.device import DeviceName
from rdm.config import Record
from rdm.database import RetrievalDatabase
from rdm.errors import RdmError
from rdm.sampling.recipe.record import Credit
from rdm.serving.problems import ServeError
from rdm.serving.settings import Named
from rdm.sources import open_source
from rdm.sources.licenses import license_of
from rdm.sources.source import Author
from rdm.storage import Folder, VersionStore

logger = logging.getLogger(__name__)


class LicenseCount(Record):
    """How many patches of a version one license covers."""

    license: str
    patches: int


class DatabaseInfo(Record):
    """A database as clients see it."""

    name: str
    version: int
    encoder: str
    encoder_digest: str
    photographs: int
    patches: int
    has_pixels: bool
    licenses: tuple[LicenseCount, ...]
    authors: int
    """Authors whom the source names in one list for all of its photographs."""
    models: tuple[str, ...]
    """Models that draw from it."""
    refused: dict[str, str]
    """Why the other models do not."""


class DatabaseChange(Record):
    """What a new version of a database did."""

    name: str
    version: int
    added: int
    removed: int


@dataclass(frozen=True, eq=False)
class OpenDatabase:
    """One version of a database. Whoever holds it reads that version; the last one closes it.

    Attributes:
        name: as requests say.
        database: its reader.
        removed: ids of deleted patches.
        licenses: of the living patches.
        authors: whom the source names in one list.
    """

    name: str
    database: RetrievalDatabase
    removed: frozenset[int]
    licenses: tuple[LicenseCount, ...]
    authors: tuple[Author, ...]

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.database.version.number

    def refuse_removed(self, patch_ids: Sequence[int]) -> None:
        """Raise ServeError for a patch that was removed, or that there never was."""
        for patch_id in patch_ids:
            if not 0 <= patch_id < self.database.version.next_patch_id:
                raise ServeError(
                    "unknown_patch",
                    f"the database has no patch {patch_id}",
                    where=self.name,
                    fix="look it up with POST /v1/neighbors",
                )
            if patch_id in self.removed:
                raise ServeError(
                    "patch_removed",
                    f"patch {patch_id} was removed on request",
                    where=self.name,
                    fix="look up again: no search finds it",
                )

    def credits(self, ids: NDArray[np.int64]) -> tuple[Credit, ...]:
        """Return living patches with their sources, in order, each as similar as can be."""
        found = []
        for record in self.database.records(ids):
            license = license_of(record.license)
            is_web = record.url.startswith(("https://", "http://"))
            found.append(
                Credit(
                    database=self.name,
                    patch_id=record.patch_id,
                    similarity=1.0,
                    image_id=record.image_id,
                    title=record.title,
                    author=record.author,
                    license=license.name,
                    license_url=license.url,
                    # A local source's is the name of a file, which says nothing elsewhere.
                    url=record.url if is_web else "",
                    landing_page=record.landing_page,
                    box=record.box,
                    sha256=record.sha256,
                )
            )

        return tuple(found)


def open_version(name: str, database: RetrievalDatabase) -> OpenDatabase:
    """Read what look-ups need of a version, so that threads only read afterwards."""
    tombstones = database.tombstones

    # A first search opens the index and maps the vectors.
    database.search_vectors(np.zeros((1, database.version.embedding_dim), np.float32), 1)

    # Of every part's metadata: once for each version.
    counts: dict[str, int] = {}
    first = 0
    for part in database.version.parts_of("metadata"):
        licenses = np.array(
            database.folder.read_table(part.path, ["license"])["license"].to_pylist()
        )
        ids = np.arange(first, first + len(licenses))
        first += len(licenses)
        values, numbers = np.unique(licenses[~np.isin(ids, tombstones)], return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            license = license_of(value or "").name
            counts[license] = counts.get(license, 0) + number

    # The most frequent license first.
    found = sorted(counts.items(), key=lambda pair: -pair[1])
    return OpenDatabase(
        name,
        database,
        frozenset(tombstones.tolist()),
        tuple(LicenseCount(license=license_, patches=number) for license_, number in found),
        _named_authors(database),
    )


def _named_authors(database: RetrievalDatabase) -> tuple[Author, ...]:
    """Return the authors of embedded samples, whose package has one list for all of them."""
    if not database.version.source.startswith("samples://"):
        return ()
    return tuple(open_source(database.version.source).credits())


class Databases:
    """The databases by name. `poll` replaces those with a new version; readers keep theirs."""

    def __init__(self, named: Sequence[Named], device: DeviceName = "cpu") -> None:
        self._named = {one.name: one.place for one in named}
        self._device: DeviceName = device
        self._open: dict[str, OpenDatabase] = {}
        self._manifests: dict[str, bytes] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order that they were given in."""
        return tuple(self._named)

    @property
    def all(self) -> tuple[OpenDatabase, ...]:
        """Those that are open."""
        return tuple(self._open[name] for name in self._named if name in self._open)

    def open_all(self) -> None:
        """Open every database and its encoder.

        Raises:
            RdmError: one cannot be opened.
        """
        for name, place in self._named.items():
            manifest = Folder(place).read_bytes("manifest.json")
            database = RetrievalDatabase.open(place, device=self._device)
            _ = database.encoder
            self._open[name] = open_version(name, database)
            self._manifests[name] = manifest

    def get(self, name: str) -> OpenDatabase:
        """Return a database at its newest version.

        Raises:
            ServeError: there is none of the name, or it is not open yet.
        """
        if name not in self._named:
            raise ServeError(
                "unknown_database",
                f"there is no database {name[:64]!r}",
                where="retrieval.database",
                fix=f"one of: {', '.join(self._named) or 'none is served'}",
            )
        if name not in self._open:
            raise ServeError("starting", f"{name} is being opened", fix="ask again", retry_after=2)
        return self._open[name]

    def poll(self) -> list[DatabaseChange]:
        """Open new versions of databases; a database that cannot be read stays at its old one."""
        changes = []
        for name, old in tuple(self._open.items()):
            try:
                change = self._poll_one(name, old)
            except (RdmError, OSError) as error:
                logger.warning("%s: the newest version cannot be opened: %s", name, error)
                continue
            if change is not None:
                changes.append(change)
        return changes

    def _poll_one(self, name: str, old: OpenDatabase) -> DatabaseChange | None:
        # The manifest's bytes tell a change without opening anything.
        folder = old.database.folder
        manifest = folder.read_bytes("manifest.json")
        if manifest == self._manifests[name]:
            return None

        # All of a version is read before it is served: requests never wait for it.
        version = VersionStore(folder).require()
        if version.number != old.version or version != old.database.version:
            database = RetrievalDatabase(folder, version, self._device)
            _ = database.encoder
            self._open[name] = open_version(name, database)

        # Noted last: a version that could not be read is tried again.
        self._manifests[name] = manifest
        new = self._open[name]
        if new is old:
            return None
        return DatabaseChange(
            name=name,
            version=new.version,
            added=new.database.version.next_patch_id - old.database.version.next_patch_id,
            removed=len(new.removed - old.removed),
        )

    def info(
        self, opened: OpenDatabase, check: Callable[[OpenDatabase], dict[str, str]]
    ) -> DatabaseInfo:
        """Return a database as clients see it.

        Args:
            opened: a version.
            check: returns why each model refuses it, empty where it does not.
        """
        facts, reasons = opened.database.facts(), check(opened)
        return DatabaseInfo(
            name=opened.name,
            version=opened.version,
            encoder=facts.encoder,
            encoder_digest=facts.encoder_digest,
            photographs=facts.photographs,
            patches=facts.patches,
            has_pixels=facts.has_pixels,
            licenses=opened.licenses,
            authors=len(opened.authors),
            models=tuple(name for name, reason in reasons.items() if not reason),
            refused={name: reason for name, reason in reasons.items() if reason},
        )
