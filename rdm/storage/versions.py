"""Versions of a retrieval database: immutable descriptions, and one pointer that is replaced last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rdm.config import Config
from rdm.errors import DatabaseError, StorageError
from rdm.storage.files import Folder, sha256_file
from rdm.storage.locks import lock_file

FORMAT = "retrieval-database"
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
_LOCK = ".writer.lock"
_DRAFT = "_draft.json"
Box = tuple[int, int, int, int]


class Part(Config):
    """One file of a version: what it holds, how much, and its SHA-256."""

    kind: str
    path: str
    num_rows: int
    num_bytes: int
    sha256: str


class Version(Config):
    """One state of a database, its neighbor tables included. Holds no times, so that equal contents give equal bytes.

    `patch_id` is never reused: `next_patch_id` only grows. Row `patch_id - first` of an embedding part, counted over
    the parts in order, is that patch's vector. Versions before `oldest_version` were dropped by a compaction.
    """

    number: int
    parent: int | None
    source: str
    source_fingerprint: str
    num_images: int
    num_patches: int
    next_patch_id: int
    embedding_dim: int
    encoder: dict[str, Any]
    index: dict[str, Any]
    tombstones: list[int]
    deleted_image_ids: list[str]
    """Photographs that were removed on request, and never come back."""
    parts: list[Part]
    config: dict[str, Any]
    oldest_version: int
    dropped_patches: dict[str, int]
    """Patches that filters left out when photographs were cut, by cause; those of photographs since deleted count."""
    deleted_patches: dict[str, list[Box]]
    """Boxes of single patches that were removed on request, by photograph: they are never cut again."""
    deleted_sha256: list[str]
    """Digests of photographs that were removed on request: equal bytes are refused, whatever their name."""

    def parts_of(self, kind: str) -> list[Part]:
        """Return the parts of one kind, in row order."""
        return [part for part in self.parts if part.kind == kind]

    @property
    def num_live_patches(self) -> int:
        """Patches that are not deleted."""
        return self.num_patches - len(self.tombstones)

    @property
    def num_bytes(self) -> int:
        """The size of all parts together."""
        return sum(part.num_bytes for part in self.parts)


class VersionStore:
    """The versions of the database at a folder, and the lock of its one writer."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def current(self) -> Version | None:
        """Return the current version, or None where the folder is missing or empty of versions.

        Raises:
            DatabaseError: the folder holds something else, or the manifest does not match the version that it names.
        """
        if not self.folder.exists(MANIFEST):
            self._refuse_foreign_folder()
            self._refuse_lost_manifest()
            return None
        manifest, data = self._read_current()
        if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
            raise DatabaseError(
                "the version file differs from what the manifest promises",
                where=self.folder.describe(manifest["current"]),
                fix="restore the file from a copy",
            )
        return self._parse(data, manifest["current"])

    def require(self, number: int | None = None) -> Version:
        """Return a version, by default the current one.

        Raises:
            DatabaseError: the folder is not a retrieval database, or has no such version.
        """
        if number is None:
            version = self.current()
            if version is None:
                raise DatabaseError(
                    "this folder is not a retrieval database",
                    where=self.folder.url,
                    fix="rdm database build --root DIR --source SPEC makes one",
                )
            return version
        path = version_path(number)
        if number not in self.numbers():
            raise DatabaseError(
                f"there is no version {number}" + self._why_dropped(number),
                where=self.folder.url,
                fix=f"versions here: {', '.join(map(str, self.numbers())) or 'none'}",
            )
        return self._parse(self.folder.read_bytes(path), path)

    def numbers(self) -> list[int]:
        """Return the numbers of all versions that can be read, oldest first."""
        current = self.current()
        found = [int(name[:-5]) for name in self.folder.names("versions", ".json") if name[:-5].isdigit()]
        return [n for n in found if current is None or current.oldest_version <= n <= current.number]

    def _why_dropped(self, number: int) -> str:
        current = self.current()
        return ": a compaction dropped it" if current and 0 < number < current.oldest_version else ""

    def commit(self, version: Version) -> None:
        """Make a version the current one: write its file, then swap the pointer. Call it under `writer()`."""
        path = version_path(version.number)
        self.folder.delete(_DRAFT)
        self.folder.write_json(path, version.model_dump(mode="json"))
        self.folder.write_json(
            MANIFEST,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "current": path,
                "sha256": hashlib.sha256(self.folder.read_bytes(path)).hexdigest(),
            },
        )

    def write_draft(self, version: Version) -> None:
        """Put down a version that workers read before it is committed. Call it under `writer()`."""
        self.folder.write_json(_DRAFT, version.model_dump(mode="json"))

    def draft(self) -> Version:
        """Return the version that the one writer is about to commit."""
        return self._parse(self.folder.read_bytes(_DRAFT), _DRAFT)

    def describe_part(self, kind: str, path: str, num_rows: int) -> Part:
        """Return the description of a file that stands."""
        return Part(
            kind=kind,
            path=path,
            num_rows=num_rows,
            num_bytes=self.folder.size(path),
            sha256=sha256_file(self.folder.local(path)),
        )

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Hold the database's writer lock; a killed writer's lock frees itself.

        Raises:
            ConcurrentWriterError: another process holds it.
            DatabaseError: the folder holds something else than a database, or one of another format.
        """
        self.current()  # before a lock file is made in a folder of something else
        self.check_writable()
        self.folder.make()
        with lock_file(Path(self.folder.path(_LOCK)), "is writing this database"):
            self.folder.sweep_temporaries()
            yield
            self.folder.sweep_temporaries()  # of workers that were killed on the way

    def check_writable(self) -> None:
        """Raise DatabaseError where the folder is on an object store: nothing there can lock a second writer out."""
        if not self.folder.is_local:
            raise DatabaseError(
                "only databases on a local or mounted disk can be written: an object store has no locks",
                where=self.folder.url,
                fix="build locally and copy the finished folder; readers take URLs with fsspec's package for them",
            )

    def _read_current(self) -> tuple[dict[str, Any], bytes]:
        manifest = self._manifest()
        while True:
            try:
                return manifest, self.folder.read_bytes(manifest["current"])
            except StorageError:  # a compaction may have dropped the version since its manifest was read
                before, manifest = manifest, self._manifest()
                if manifest == before:
                    raise

    def _manifest(self) -> dict[str, Any]:
        manifest = self.folder.read_json(MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DatabaseError(
                "manifest.json is not a retrieval database's",
                where=self.folder.url,
                fix="point --root at a folder that `rdm database build` made, or at an empty one",
            )
        if (found := manifest.get("format_version")) != FORMAT_VERSION:
            raise DatabaseError(
                f"the database has format {found}, this release reads format {FORMAT_VERSION}",
                where=self.folder.url,
                fix="build it again in a new folder: rdm database build --root NEW --source SPEC",
            )
        if not isinstance(manifest.get("current"), str):
            raise DatabaseError(
                "manifest.json names no current version", where=self.folder.url, fix="restore the file from a copy"
            )
        return manifest

    def _parse(self, data: bytes, path: str) -> Version:
        try:
            return Version.model_validate_json(data)
        except ValidationError as error:
            raise DatabaseError(
                f"the version file is damaged: {error.errors()[0]['msg']}",
                where=self.folder.describe(path),
                fix="restore the file from a copy",
            ) from error

    def _refuse_lost_manifest(self) -> None:
        # The first version alone may be one that a killed build was about to commit; it is made again, and has no
        # removals that could be forgotten.
        later = [name for name in self.folder.names("versions", ".json") if name != "000001.json"]
        if later:
            raise DatabaseError(
                f"the folder is a database whose {MANIFEST} is lost: versions/ holds {later[-1]}",
                where=self.folder.url,
                fix=f"restore {MANIFEST} from a copy: starting anew would bring removed photographs back",
            )

    def _refuse_foreign_folder(self) -> None:
        ours = {
            "_markers",
            "images",
            "patches",
            "dropped",
            "img_emb",
            "metadata",
            "index",
            "image.index",
            "neighbors",
            "versions",
            _LOCK,
            _DRAFT,
            "run.json",
        }
        foreign = [name for name in self.folder.names() if name not in ours]
        if foreign:
            raise DatabaseError(
                f"the folder is not a retrieval database: it holds {', '.join(foreign[:3])}",
                where=self.folder.url,
                fix="give --root a new or empty folder",
            )


def version_path(number: int) -> str:
    """Return the path of a version's file."""
    return f"versions/{number:06d}.json"
