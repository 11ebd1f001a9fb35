"""Make a database of embeddings from elsewhere: without pixels, whole in everything else.

The encoder that made them must be named. Its fingerprint is recorded, and compared before any
search; whether it truly made these vectors is checked on photographs where they are at hand, else
recorded as declared and not checked.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from rdm.config import Config, Record, digest_json
from rdm.database.changes.compact import delete_unnamed_files
from rdm.database.contract import (
    SHARD_KINDS,
    embeddings_path,
    image_paths,
    metadata_path,
    patches_path,
    version_place,
)
from rdm.database.embedding_parts import open_embeddings
from rdm.database.exchange.encoder_check import ImportedPart, check_encoder
from rdm.database.exchange.foreign_layouts import (
    ForeignFormat,
    ForeignPart,
    foreign_parts,
)
from rdm.database.exchange.imported_shard import ImportStats, write_imported
from rdm.database.facts import VersionFacts, version_facts
from rdm.database.search.index import build_index, publish_index
from rdm.database.search.index_settings import IndexConfig
from rdm.database.search.sharded_index import IndexedRows
from rdm.database.settings import BuildConfig
from rdm.database.shards import describe_index
from rdm.encoders import Encoder, EncoderName, load_encoder
from rdm.errors import DatabaseError
from rdm.progress import tracking
from rdm.sources.kinds.imported import imported_listing, imported_source
from rdm.sources.open import absolute_spec
from rdm.sources.source import fingerprint
from rdm.storage import (
    EncoderRecord,
    Folder,
    ShardWork,
    Version,
    VersionStore,
    resumable,
    sha256_file,
)

NOT_CHECKED = "declared at import, not checked"


class ImportConfig(Config):
    """Settings of an import: the folder, its layout, and the encoder that made the vectors."""

    format: ForeignFormat
    folder: str = Field(description="folder or URL of the embeddings")
    encoder: EncoderName = Field(
        description="the encoder that made them, such as open_clip:ViT-B-32-quickgelu/openai"
    )
    photographs: Annotated[str, AfterValidator(absolute_spec)] = Field(
        default="", description="source of photographs to check the encoder on; empty: none"
    )
    min_check_similarity: float = Field(
        default=0.98,
        ge=-1,
        le=1,
        description="cosine similarity of a photograph encoded again to its import",
    )
    index: IndexConfig = IndexConfig()


@dataclass(frozen=True)
class _Written:
    """An imported part: its files in the order of SHARD_KINDS, its first patch id, its counts."""

    outputs: list[str]
    first: int
    stats: ImportStats


class ImportPlan(Record):
    """The size of an import."""

    format: str
    parts: int
    num_bytes: int


class ImportResult(VersionFacts):
    """The version that an import made, or found made."""

    pixels: str = "none: search and conditioning work, galleries cannot show patches"
    unchanged: bool


def import_plan(config: ImportConfig) -> ImportPlan:
    """Return the size of an import."""
    parts = foreign_parts(config.format, config.folder)
    num_bytes = sum(part.folder.size(path) for part in parts for path in part.files)
    return ImportPlan(format=config.format, parts=len(parts), num_bytes=num_bytes)


def import_database(root: str, config: ImportConfig) -> ImportResult:
    """Make a database of foreign embeddings; the same command again resumes, or does nothing.

    Patch ids are those of a `patch_id` column where there is one, else the rows counted over the
    parts.

    Raises:
        DatabaseError: a file is not what it should be, dimensions differ, or the root holds
            something else.
        EncoderMismatchError: a photograph encoded again is too far from its imported vector.
        ConcurrentWriterError: another process is writing the database.
    """
    # The digest is of the files' contents: the same embeddings in another folder are the same.
    foreign = foreign_parts(config.format, config.folder)
    encoder = load_encoder(config.encoder)
    store = VersionStore(Folder(root))
    digests = [[sha256_file(part.folder.local(path)) for path in part.files] for part in foreign]
    digest = digest_json([config.model_dump(mode="json", exclude={"folder"}), digests])

    with store.writer():
        # A finished import is left alone; a database of anything else is never overwritten.
        if (current := store.current()) is not None:
            if current.encoder.import_digest != digest:
                raise DatabaseError(
                    "the root holds a database of something else",
                    where=root,
                    fix="give --root a new folder",
                )
            return ImportResult(**dict(version_facts(current)), unchanged=True)

        # Write the parts, with ids that count on from part to part.
        written = _import_parts(store.folder, foreign, digests, encoder.embedding_dim)
        if all(part.stats.num_images == 0 for part in written):
            raise DatabaseError(
                "there is nothing to import: no part has a row",
                where=config.folder,
                fix="check the path, and that the program that writes the embeddings has finished",
            )

        # Record the encoder, checked on photographs where some were given.
        origin = _origin(store.folder, written, encoder, config)
        record = EncoderRecord(
            name=config.encoder,
            digest=encoder.fingerprint.digest(),
            precision="float32",
            fingerprint=encoder.fingerprint.model_dump(mode="json"),
            origin=origin,
            import_digest=digest,
        )

        # Commit. Files that the version does not name are left of an unfinished other import.
        version = _version(store, written, record, encoder.embedding_dim, config)
        delete_unnamed_files(store.folder, version)
        publish_index(store.folder, version_place(version.number))
        store.commit(version)
    return ImportResult(**dict(version_facts(version)), unchanged=False)


def _import_parts(
    folder: Folder, foreign: list[ForeignPart], digests: list[list[str]], dim: int
) -> list[_Written]:
    written, first = [], 0
    with tracking("import", len(foreign), "parts") as tracker:
        for number, (part, of_part) in enumerate(zip(foreign, digests, strict=True)):
            # The first id is part of the key: where an earlier part changed, later ones move.
            key = digest_json([of_part, number, first, dim])
            written.append(_import_part(folder, part, number, first, dim, key))
            first = written[-1].first + written[-1].stats.count
            tracker.advance()
    return written


def _import_part(
    folder: Folder, part: ForeignPart, number: int, first: int, dim: int, key: str
) -> _Written:
    stem = f"{number:05d}"
    images, ledger, counts = image_paths(stem)
    outputs = [images, ledger, patches_path(number), embeddings_path(number), metadata_path(number)]

    def write() -> tuple[list[str], ImportStats]:
        return [*outputs, counts], write_imported(folder, part, stem, outputs, first, dim)

    return _Written(
        outputs, first, resumable(ShardWork(folder, "import", stem, key, ImportStats), write)
    )


def _origin(folder: Folder, written: list[_Written], encoder: Encoder, config: ImportConfig) -> str:
    if not config.photographs:
        return NOT_CHECKED
    parts = [
        ImportedPart(part.first, part.outputs[3], part.outputs[2], part.outputs[4])
        for part in written
    ]
    return check_encoder(folder, parts, encoder, config.photographs, config.min_check_similarity)


def _version(
    store: VersionStore,
    written: list[_Written],
    encoder: EncoderRecord,
    dim: int,
    config: ImportConfig,
) -> Version:
    """Describe all parts, build the index, and return the version to commit."""
    # Parts, read back once: `open_embeddings` raises where a file has another shape.
    parts = [
        store.describe_part(
            kind, path, part.stats.num_images if kind in ("images", "ledger") else part.stats.count
        )
        for part in written
        for kind, path in zip(SHARD_KINDS, part.outputs, strict=True)
    ]

    # Opened once before anything is built on them: a wrong shape shows here.
    embeddings = [part for part in parts if part.kind == "embeddings"]
    open_embeddings(store.folder, embeddings, dim)

    # The index is of the living rows; empty places count as deleted from the start.
    tombstones = [patch_id for part in written for patch_id in part.stats.empty]
    place = version_place(1)
    rows = IndexedRows(
        store.folder, tuple(part.path for part in embeddings), np.array(tombstones, np.int64)
    )
    index = build_index(rows, config.index, place)
    parts += describe_index(store, place, index)

    image_ids = _image_ids(store.folder, written)
    count = sum(part.stats.count for part in written)
    source = imported_source(config.format)
    settings = BuildConfig(source=source, encoder=config.encoder, index=config.index)

    # The first version: nothing was deleted or dropped before it.
    return Version(
        number=1,
        parent=None,
        source=source,
        source_fingerprint=fingerprint(imported_listing(image_ids)),
        num_images=len(image_ids),
        num_patches=count,
        next_patch_id=count,
        embedding_dim=dim,
        encoder=encoder,
        index=index,
        tombstones=tombstones,
        deleted_image_ids=[],
        deleted_patches={},
        deleted_sha256=[],
        dropped_patches={},
        parts=parts,
        config=settings.model_dump(mode="json"),
        oldest_version=1,
    )


def _image_ids(folder: Folder, written: list[_Written]) -> list[str]:
    ledgers = [folder.read_table(part.outputs[1], ["image_id"]) for part in written]
    return pa.concat_tables(ledgers)["image_id"].unique().to_pylist()
