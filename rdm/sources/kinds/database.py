"""`database:///DB`: a retrieval database's living photographs, read from its tars by offset."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from rdm.errors import SourceError
from rdm.sources.kinds.local import PATH_HINT, LocalSource, local_path, read_file
from rdm.sources.source import Author, make_listing
from rdm.storage import Folder, Version, VersionStore, part_rows

_LEDGER_COLUMNS = [
    "image_id",
    "sha256",
    "tar_offset",
    "num_bytes",
    "rotation",
    "author",
    "title",
    "license",
    "landing_page",
]


class DatabaseSource(LocalSource):
    """The photographs with patches in the current version.

    The tars themselves hold more: removed photographs until a compaction, replaced ones, and
    leftovers of killed updates.
    """

    def __init__(self, rest: str) -> None:
        self.root = local_path("database", rest)
        self.spec = f"database://{self.root}"
        self._folder = Folder(str(self.root))
        if VersionStore(self._folder).current() is None:
            raise SourceError(
                "there is no database here",
                where=self.root,
                fix=f"name the folder of a finished one {PATH_HINT}",
            )

    def listing(self) -> pa.Table:
        """See Source. A location is `TAR:OFFSET:SIZE`, and the etag the photograph's SHA-256.

        Raises:
            SourceError: the database was imported without pixels.
        """
        version = VersionStore(self._folder).current()
        assert version is not None
        rows = []

        # Only living photographs, at their places in the tars.
        for shard, numbers in self._places(version).items():
            ledger = self._folder.read_table(f"images/{shard}.parquet", _LEDGER_COLUMNS)
            for row in ledger.take(pa.array(sorted(numbers))).to_pylist():
                offset, size = row.pop("tar_offset"), row.pop("num_bytes")
                # Imported photographs have no place.
                if offset is None:
                    raise SourceError(
                        "the database has embeddings alone",
                        where=self.root,
                        fix="name where its photographs are",
                    )
                rows.append(
                    {**row, "etag": row.pop("sha256"), "location": f"{shard}.tar:{offset}:{size}"}
                )

        return make_listing(rows)

    def read(self, location: str, limit: int | None = None) -> bytes:
        """See Source."""
        name, offset, size = location.rsplit(":", 2)
        return read_file(
            self.root / "images" / Path(name).name, limit, start=int(offset), size=int(size)
        )

    def credits(self) -> tuple[Author, ...]:
        """Return nobody: each photograph has its own."""
        return ()

    def _places(self, version: Version) -> dict[str, set[int]]:
        """Return the rows of each shard's ledger whose photographs have living patches."""
        places: dict[str, set[int]] = {}
        for rows in part_rows(version):
            table = self._folder.read_table(rows.part.path, ["image_shard", "image_row"])
            living = table.filter(pa.array(rows.living))
            for shard, row in zip(
                living["image_shard"].to_pylist(), living["image_row"].to_pylist(), strict=True
            ):
                places.setdefault(shard, set()).add(row)
        return places
