"""Make a database of embeddings from elsewhere: without pixels, whole in everything else.

The encoder that made them must be named. Its fingerprint is recorded, and compared before any
search; whether it truly made these vectors is checked on photographs where they are at hand, else
recorded as declared and not checked.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import tarfile
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from rdm.config import Config, Record, digest_json
from rdm.database.changes.compact import delete_unnamed_files
from rdm.database.contract import (
    CORNERS,
    PATCH_SCHEMA,
    SHARD_KINDS,
    embeddings_path,
    image_paths,
    metadata_path,
    patches_path,
    stats_path,
    version_place,
)
from rdm.database.embedding_parts import open_embeddings
from rdm.database.exchange.encoder_check import ImportedPart, check_encoder
from rdm.database.exchange.foreign_layouts import (
    TEXTS,
    ForeignFormat,
    ForeignPart,
    foreign_parts,
    unit_vectors,
)
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
from rdm.sources.ledger import IMPORTED, LEDGER_SCHEMA, ShardStats
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
_GAPS = 100_000  # places that patch ids may leave empty beside nine times the rows


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


class ImportStats(Record):
    """Counts of one imported part, and the patch ids that it leaves empty."""

    count: int
    num_images: int
    empty: list[int]


@dataclass(frozen=True)
class _Written:
    """An imported part: its files in the order of SHARD_KINDS, its first patch id, its counts."""

    outputs: list[str]
    first: int
    stats: ImportStats


class ImportPlan(Record):
    """What an import would read."""

    format: str
    parts: int
    num_bytes: int


class ImportResult(VersionFacts):
    """The version that an import made, or found made."""

    pixels: str = "none: search and conditioning work, galleries cannot show patches"
    unchanged: bool


def import_plan(config: ImportConfig) -> ImportPlan:
    """Return what an import would read."""
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
        return [*outputs, counts], _load_and_write(folder, part, stem, outputs, first, dim)

    return _Written(
        outputs, first, resumable(ShardWork(folder, "import", stem, key, ImportStats), write)
    )


def _load_and_write(
    folder: Folder, part: ForeignPart, stem: str, outputs: list[str], first: int, dim: int
) -> ImportStats:
    """Read a foreign part, check it, and write it as a shard of the database."""
    # Read and check.
    found = part.load()
    if len(found.vectors) == 0:
        found = replace(found, vectors=np.zeros((0, dim), np.float16))

    if found.vectors.shape[1] != dim:
        raise DatabaseError(
            f"the embeddings have {found.vectors.shape[1]} dimensions, the encoder {dim}",
            where=part.where,
            fix="name the encoder that made them: --encoder",
        )

    # Spread the rows over the part's patch ids; ids that no row has stay zero vectors.
    unit, norms = unit_vectors(found, part.where)
    places, count = _places(found.rows, first, part.where)
    table = _spread(found.rows.append_column("length", pa.array(norms)), places, first, count)
    vectors = np.zeros((count, dim), np.float16)
    vectors[places] = unit

    empty = np.setdiff1d(np.arange(count), places)
    num_images = _write_part(folder, stem, outputs, table, vectors, empty)

    return ImportStats(count=count, num_images=num_images, empty=(empty + first).tolist())


def _write_part(
    folder: Folder,
    stem: str,
    outputs: list[str],
    table: pa.Table,
    vectors: NDArray[np.float16],
    empty: NDArray[np.int64],
) -> int:
    """Write a part's files and return the number of its photographs."""
    ledger, image_rows = _ledger(table, empty, stem)

    # No pixels: a tar without members.
    with folder.writing(outputs[0]) as path, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT):
        pass
    folder.write_table(outputs[1], ledger)

    counts = ShardStats(
        count=ledger.num_rows, successes=0, failed=0, status_dict={IMPORTED: ledger.num_rows}
    )
    folder.write_record(stats_path(outputs[0]), counts)

    folder.write_table(outputs[2], _patches(table, image_rows, stem))
    folder.write_array(outputs[3], vectors)
    folder.write_table(outputs[4], table.select(["patch_id", *TEXTS, "norm"]))
    return ledger.num_rows


def _places(rows: pa.Table, first: int, where: str) -> tuple[NDArray[np.int64], int]:
    """Return each row's place [N], counted from the part's first patch id, and their number."""
    if "patch_id" not in rows.column_names:
        return np.arange(rows.num_rows), rows.num_rows

    # Ids ascend strictly from the first id of the part on.
    places = rows["patch_id"].to_numpy().astype(np.int64) - first
    wrong = np.diff(places, prepend=-1) <= 0
    if wrong.any():
        row = int(wrong.argmax())
        raise DatabaseError(
            f"the patch id in row {row} is {places[row] + first}: ids must ascend, over the "
            "parts too",
            where=where,
            fix="sort the rows, or leave the column patch_id out",
        )

    # Every empty place costs a zero vector and a tombstone: a gap must not fill the disk.
    count = int(places[-1]) + 1 if len(places) else 0
    if count > 10 * rows.num_rows + _GAPS:
        raise DatabaseError(
            f"patch ids up to {count + first - 1} for {rows.num_rows} rows leave too many "
            "empty places",
            where=where,
            fix="leave the column patch_id out: rows are counted then",
        )
    return places, count


def _spread(rows: pa.Table, places: NDArray[np.int64], first: int, count: int) -> pa.Table:
    """Return `count` rows, those found in their places, the others empty."""
    # Row of the found table for each place; -1 becomes null, and null becomes empty or zero.
    taken = np.full(count, -1, np.int64)
    taken[places] = np.arange(rows.num_rows)
    picked = rows.take(pa.array(taken, mask=taken < 0))

    columns: dict[str, Any] = {
        "patch_id": pa.array(np.arange(first, first + count, dtype=np.int64))
    }
    columns |= {name: pc.fill_null(picked[name], "") for name in TEXTS}
    columns |= {name: pc.fill_null(picked[name], 0) for name in CORNERS}
    return pa.table({**columns, "norm": pc.fill_null(picked["length"], 0.0)})


def _ledger(
    table: pa.Table, empty: NDArray[np.int64], stem: str
) -> tuple[pa.Table, NDArray[np.int32]]:
    """Return one ledger row per photograph, and each patch's row in it (-1 of an empty place)."""
    encoded = table["image_id"].combine_chunks().dictionary_encode()
    names, rows = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int32)

    # All empty places look like one photograph without a name: take it out, close the gap.
    if len(empty):
        gone = names.index("")
        names.pop(gone)
        rows = np.where(rows == gone, -1, rows - (rows > gone)).astype(np.int32)

    # Facts of a photograph are those of its first patch.
    firsts = np.unique(rows[rows >= 0], return_index=True)[1]
    described = table.filter(pa.array(rows >= 0)).take(pa.array(firsts))
    columns: dict[str, Any] = {
        field.name: pa.nulls(len(names), field.type) for field in LEDGER_SCHEMA
    }

    # No file was fetched, so sizes, digests and hashes of pictures stay null.
    columns |= {
        "key": [f"{stem}{number:06d}" for number in range(len(names))],
        "image_id": names,
        "status": [IMPORTED] * len(names),
        "num_bytes": [0] * len(names),
        **dict.fromkeys(("error_message", "landing_page", "etag"), [""] * len(names)),
        **{name: described[name] for name in ("url", "author", "license")},
    }
    return pa.table(columns).cast(LEDGER_SCHEMA), rows


def _patches(table: pa.Table, image_rows: NDArray[np.int32], stem: str) -> pa.Table:
    shards = np.where(image_rows >= 0, stem, "")
    columns = [
        table["patch_id"],
        table["image_id"],
        shards,
        image_rows,
        *(table[name] for name in CORNERS),
    ]
    return pa.table(columns, names=PATCH_SCHEMA.names).cast(PATCH_SCHEMA)


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
