"""A database's versions: immutable descriptions, and one pointer that is replaced last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from rdm.errors import DatabaseError, StorageError
from rdm.storage.files import Folder, sha256_file
from rdm.storage.locks import lock_file
from rdm.storage.records import Manifest, Part, Version, version_path

FORMAT = "retrieval-database"
FORMAT_VERSION = 4
MANIFEST = "manifest.json"
_LOCK = ".writer.lock"
_DRAFT = "_draft.json"
_OURS = frozenset({  # everything that the folder of an unfinished first build may hold
    "_markers", "images", "patches", "dropped", "img_emb", "metadata", "index", "image.index",
    "neighbors", "versions", "run.json", _LOCK, _DRAFT,
})  # fmt: skip


class VersionStore:
    """The versions of the database at a folder, and the lock of its one writer."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def current(self) -> Version | None:
        """Return the current version; None if the folder is missing or has no versions.

        Raises:
            DatabaseError: the folder holds something else, or the manifest does not match the
                version that it names.
        """
        # Without a manifest the folder must be empty, or a first build's that was killed.
        if not self.folder.exists(MANIFEST):
            self._refuse_foreign_folder()
            self._refuse_lost_manifest()
            return None

        manifest, data = self._read_current()
        if hashlib.sha256(data).hexdigest() != manifest.sha256:
            raise DatabaseError(
                "the version file differs from what the manifest promises",
                where=self.folder.describe(manifest.current),
                fix="restore the file from a copy",
            )
        return self._parse(data, manifest.current)

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

        # A killed writer may have left a file above the current version; compacted ones are below.
        found = [
            int(name[:-5]) for name in self.folder.names("versions", ".json") if name[:-5].isdigit()
        ]
        return [
            n for n in found if current is None or current.oldest_version <= n <= current.number
        ]

    def _why_dropped(self, number: int) -> str:
        current = self.current()
        is_dropped = current is not None and 0 < number < current.oldest_version
        return ": a compaction dropped it" if is_dropped else ""

    def commit(self, version: Version) -> None:
        """Make a version current, under `writer()`: write its file, then swap the pointer."""
        # The version's file first: the manifest must never name a file that is not whole.
        path = version_path(version.number)
        self.folder.delete(_DRAFT)
        self.folder.write_record(path, version)

        # Atomic: whoever reads the manifest sees the old version or the new one.
        self.folder.write_record(
            MANIFEST,
            Manifest(
                format=FORMAT,
                format_version=FORMAT_VERSION,
                current=path,
                sha256=hashlib.sha256(self.folder.read_bytes(path)).hexdigest(),
            ),
        )

    def write_draft(self, version: Version) -> None:
        """Write a version that workers read before it is committed. Call it under `writer()`."""
        self.folder.write_record(_DRAFT, version)

    def draft(self) -> Version:
        """Return the version that the one writer is about to commit."""
        return self._parse(self.folder.read_bytes(_DRAFT), _DRAFT)

    def describe_part(self, kind: str, path: str, num_rows: int) -> Part:
        """Return the description of a file that is written."""
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
            DatabaseError: the folder holds something else, or a database of another format.
        """
        # Raises before a lock file is made in a folder of something else.
        self.current()
        self.check_writable()
        self.folder.make()

        with lock_file(Path(self.folder.path(_LOCK)), "is writing this database"):
            self.folder.sweep_temporaries()
            yield
            # Workers that were killed on the way may have left some.
            self.folder.sweep_temporaries()

    def check_writable(self) -> None:
        """Raise DatabaseError for an object store: nothing there can lock a second writer out."""
        if not self.folder.is_local:
            raise DatabaseError(
                "only databases on a local or mounted disk can be written: an object store "
                "has no locks",
                where=self.folder.url,
                fix="build locally and copy the finished folder; readers take URLs with "
                "fsspec's package for them",
            )

    def _read_current(self) -> tuple[Manifest, bytes]:
        """Return the manifest, and the bytes of the version that it names."""
        manifest = self._manifest()
        while True:
            try:
                return manifest, self.folder.read_bytes(manifest.current)
            except StorageError:
                # A compaction may have dropped the version since its manifest was read.
                before, manifest = manifest, self._manifest()
                if manifest == before:
                    raise

    def _manifest(self) -> Manifest:
        """Read the manifest; raise DatabaseError if it is not ours, or of another format."""
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

        try:
            return Manifest.model_validate({"sha256": "", **manifest})
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{MANIFEST} is damaged: {first['msg']}"
            if first["loc"] == ("current",):
                what = f"{MANIFEST} names no current version"
            raise DatabaseError(
                what,
                where=self.folder.url,
                fix="restore the file from a copy",
            ) from error

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
        """Raise DatabaseError if there are versions without a manifest.

        The first version alone may be one that a killed build was about to commit; it is made
        again, and has no removals that could be forgotten.
        """
        later = [name for name in self.folder.names("versions", ".json") if name != "000001.json"]
        if later:
            raise DatabaseError(
                f"the folder is a database whose {MANIFEST} is lost: versions/ holds {later[-1]}",
                where=self.folder.url,
                fix=f"restore {MANIFEST} from a copy: starting anew would bring removed "
                "photographs back",
            )

    def _refuse_foreign_folder(self) -> None:
        """Raise DatabaseError if the folder holds anything that no database has."""
        foreign = [name for name in self.folder.names() if name not in _OURS]
        if foreign:
            raise DatabaseError(
                f"the folder is not a retrieval database: it holds {', '.join(foreign[:3])}",
                where=self.folder.url,
                fix="give --root a new or empty folder",
            )
