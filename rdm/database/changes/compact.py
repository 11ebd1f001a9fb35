"""Compaction: remove deleted photographs and their vectors from the disk, and drop older versions.

Patch ids are rows, so rows stay: a deleted patch keeps its place as a zero vector and an empty row,
and the bytes of its photograph leave the tar. Every shard with something to remove is written again
under a new name; the new version is committed; then everything that it does not name is deleted.
Killed anywhere, the same command finishes.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rdm.config import Record, digest_json
from rdm.database.changes.holdings import DELETED
from rdm.database.contract import (
    INDEX_NAME,
    INFOS_NAME,
    PART_DIRECTORIES,
    PUBLISHED,
    REMOVED_DIGESTS,
    SHARD_KINDS,
    compacted_path,
    stats_path,
    version_path,
)
from rdm.progress import tracking
from rdm.sources.ledger import SUCCESS, ShardStats
from rdm.storage import (
    Folder,
    NoStats,
    Part,
    ShardWork,
    Version,
    VersionStore,
    part_rows,
    resumable,
)

_DIRECTORIES = (
    *PART_DIRECTORIES,
    "versions",
    # Of abandoned updates: what they fetched and could not use, and digests.
    *("_markers/fetch", REMOVED_DIGESTS),
)
# The hash keeps out photographs that look like a removed one.
_KEPT_OF_DELETED = ("key", "image_id", "phash")


@dataclass(frozen=True)
class ShardCompaction:
    """One image shard to write again: its parts, dead patches' rows and gone photographs' rows."""

    position: int
    parts: dict[str, Part]
    dead_patches: NDArray[np.bool_]
    gone_photographs: NDArray[np.int64]
    num_bytes: int


class CompactionPlan(Record):
    """The numbers of a planned compaction, and about how many bytes it frees."""

    photographs: int
    patches: int
    shards: int
    dropped_versions: list[int]
    freed_bytes: int


class CompactionResult(CompactionPlan):
    """The numbers of a compaction, and the version that it leaves."""

    version: int
    num_bytes: int


def compaction_plan(root: str) -> CompactionPlan:
    """Return what a compaction would remove, and about how many bytes it would free.

    Raises:
        DatabaseError: the root is no database.
    """
    folder = Folder(root)
    store = VersionStore(folder)
    version = store.require()
    shards = _shards_to_compact(folder, version)
    stray = sum(folder.size(path) for path in _unnamed_files(folder, version))

    return CompactionPlan(
        photographs=sum(len(shard.gone_photographs) for shard in shards),
        patches=sum(int(shard.dead_patches.sum()) for shard in shards),
        shards=len(shards),
        dropped_versions=store.numbers() if _needs_version(version, shards) else [],
        freed_bytes=stray + sum(shard.num_bytes for shard in shards),
    )


def compact_database(root: str) -> CompactionResult:
    """Remove deleted photographs and older versions from the disk; return the numbers.

    Where there is nothing to remove, nothing is written.

    Raises:
        DatabaseError: the root is no database, or one of another format.
        ConcurrentWriterError: another process is writing it.
    """
    folder = Folder(root)
    store = VersionStore(folder)
    store.require()
    with store.writer():
        # Planned under the lock: no other writer can commit in between.
        version, plan = store.require(), compaction_plan(root)

        shards = _shards_to_compact(folder, version)
        if _needs_version(version, shards):
            version = _rewrite(store, version, shards)
        # From here on only the new version can be read.
        delete_unnamed_files(folder, version)
    return CompactionResult(**dict(plan), version=version.number, num_bytes=version.num_bytes)


def blank_vectors(vectors: NDArray[np.float16], dead: NDArray[np.bool_]) -> NDArray[np.float16]:
    """Return vectors [N, dim] with zeros in the dead rows [N]."""
    return np.where(dead[:, None], np.float16(0), vectors)


def blank_patches(patches: pa.Table, dead: NDArray[np.bool_], stem: str) -> pa.Table:
    """Return patch rows that name a new image shard; dead ones keep their id alone."""
    rows = [
        {**_emptied(row, -1), "patch_id": row["patch_id"]} if gone else {**row, "image_shard": stem}
        for row, gone in zip(patches.to_pylist(), dead, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=patches.schema)


def blank_metadata(metadata: pa.Table, dead: NDArray[np.bool_], stem: str) -> pa.Table:
    """Return metadata rows that name a new image shard; dead ones keep their patch id alone."""
    rows = [
        {**_emptied(row, 0), "patch_id": row["patch_id"]}
        if gone
        else {**row, "image_path": f"{stem}.tar/{row['image_path'].rpartition('/')[2]}"}
        for row, gone in zip(metadata.to_pylist(), dead, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=metadata.schema)


def blank_ledger(ledger: pa.Table, gone: NDArray[np.int64]) -> pa.Table:
    """Return ledger rows, where deleted photographs keep key, image id and hash alone."""
    rows = ledger.to_pylist()
    for number in gone.tolist():
        kept = {name: rows[number][name] for name in _KEPT_OF_DELETED}
        rows[number] = {
            **dict.fromkeys(rows[number]),
            **kept,
            "status": DELETED,
            "error_message": DELETED,
            "etag": "",
        }
    return pa.Table.from_pylist(rows, schema=ledger.schema)


def _emptied(row: Mapping[str, object], number: int) -> dict[str, str | int]:
    return {name: "" if isinstance(value, str) else number for name, value in row.items()}


def _shards_to_compact(folder: Folder, version: Version) -> list[ShardCompaction]:
    """Return the image shards with a deleted photograph or patch that is still on the disk."""
    found: list[ShardCompaction] = []
    columns = [version.parts_of(kind) for kind in SHARD_KINDS]
    for position, (*members, of_part) in enumerate(zip(*columns, part_rows(version), strict=True)):
        parts: dict[str, Part] = dict(zip(SHARD_KINDS, members, strict=True))
        dead = ~of_part.living

        # A photograph goes when all of its patches are dead, or when its removal was requested; it
        # stays while one patch lives. A row of -1 was emptied by an earlier compaction.
        rows = folder.read_table(parts["patches"].path, ["image_row"])["image_row"].to_numpy()
        removed = _removed_rows(folder, parts["ledger"], version)
        gone = np.setdiff1d(np.union1d(rows[dead & (rows >= 0)], removed), rows[~dead]).astype(
            np.int64
        )

        if len(gone) or (rows[dead] >= 0).any():
            sizes = (
                folder.read_table(parts["ledger"].path, ["num_bytes"])["num_bytes"]
                .take(gone)
                .to_pylist()
            )
            found.append(ShardCompaction(position, parts, dead, gone, sum(sizes)))
    return found


def _removed_rows(folder: Folder, ledger: Part, version: Version) -> NDArray[np.int64]:
    """Return the rows, not emptied yet, of photographs that were removed on request.

    Filters may have left them no patch; and a row that says why a photograph cannot be used names
    the photograph, too.
    """
    if not version.deleted_image_ids:
        return np.zeros(0, np.int64)

    columns = folder.read_table(ledger.path, ["image_id", "status"]).to_pydict()
    deleted = set(version.deleted_image_ids)
    pairs = zip(columns["image_id"], columns["status"], strict=True)

    return np.flatnonzero([status != DELETED and image_id in deleted for image_id, status in pairs])


def _needs_version(version: Version, shards: list[ShardCompaction]) -> bool:
    """Return whether there is anything to write again, or an older version to drop."""
    return bool(shards) or version.oldest_version < version.number


def _rewrite(store: VersionStore, version: Version, shards: list[ShardCompaction]) -> Version:
    """Write the shards again, and commit the version that names the new files."""
    number, replaced = version.number + 1, {}
    with tracking("compact", len(shards), "shards") as tracker:
        for shard in shards:
            outputs = _compact_shard(store.folder, shard, number)
            for kind, path in outputs.items():
                old = shard.parts[kind]
                replaced[old.path] = store.describe_part(kind, path, old.num_rows)
            tracker.advance()

    # Every part keeps its number of rows, so patch ids stay.
    parts = [replaced.get(part.path, part) for part in version.parts]
    update = {"number": number, "parent": version.number, "parts": parts, "oldest_version": number}
    compacted = version.model_copy(update=update)
    store.commit(compacted)
    return compacted


def _compact_shard(folder: Folder, shard: ShardCompaction, number: int) -> dict[str, str]:
    """Write one shard again under the new version's names; return the paths by kind."""
    outputs = {kind: compacted_path(part.path, number) for kind, part in shard.parts.items()}
    before = [part.sha256 for part in shard.parts.values()]
    gone = [np.flatnonzero(shard.dead_patches).tolist(), shard.gone_photographs.tolist()]
    key = digest_json([before, gone, number])
    work = ShardWork(folder, "compact", f"{shard.position:05d}", key, NoStats)
    resumable(work, lambda: (_write_compacted(folder, shard, outputs), NoStats()))
    return outputs


def _write_compacted(folder: Folder, shard: ShardCompaction, outputs: dict[str, str]) -> list[str]:
    """Write a shard's parts again without what goes; return their paths and that of the counts."""
    stats = stats_path(outputs["images"])
    tables = {
        kind: folder.read_table(shard.parts[kind].path)
        for kind in ("ledger", "patches", "metadata")
    }

    # The tar, whose members move up, and the ledger with their new offsets.
    stem = outputs["images"].removeprefix("images/").removesuffix(".tar")
    ledger = blank_ledger(tables["ledger"], shard.gone_photographs)
    with folder.writing(outputs["images"]) as path:
        offsets = _copy_members(folder.local(shard.parts["images"].path), path, ledger)
    column = ledger.column_names.index("tar_offset")
    ledger = ledger.set_column(
        column, "tar_offset", pa.array(offsets, ledger.schema.field("tar_offset").type)
    )

    folder.write_table(outputs["ledger"], ledger)
    folder.write_record(stats, _shard_stats(folder, shard.parts["images"].path, ledger))

    # Rows stay where they are: a dead patch keeps its id, and its vector becomes zero.
    folder.write_table(
        outputs["patches"], blank_patches(tables["patches"], shard.dead_patches, stem)
    )
    folder.write_table(
        outputs["metadata"], blank_metadata(tables["metadata"], shard.dead_patches, stem)
    )
    vectors = np.asarray(folder.read_array(shard.parts["embeddings"].path))
    folder.write_array(outputs["embeddings"], blank_vectors(vectors, shard.dead_patches))
    return [*outputs.values(), stats]


def _copy_members(source: Path, target: Path, ledger: pa.Table) -> list[int | None]:
    """Copy the pictures of living ledger rows; return their new offsets, None for other rows."""
    offsets: list[int | None] = []
    with (
        open(source, "rb") as old,
        open(target, "wb") as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        offset = 0
        for row in ledger.to_pylist():
            if row["status"] != SUCCESS:
                offsets.append(None)
                continue
            old.seek(row["tar_offset"])
            data = old.read(row["num_bytes"])

            # Time 0, so that equal input gives equal bytes.
            member = tarfile.TarInfo(f"{row['key']}.{row['extension']}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

            # The data follow one block of header; a member fills whole blocks.
            offsets.append(offset + tarfile.BLOCKSIZE)
            offset += tarfile.BLOCKSIZE + -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return offsets


def _shard_stats(folder: Folder, images: str, ledger: pa.Table) -> ShardStats:
    """Return the counts of a shard, with its photographs as they are now."""
    rows = ledger.select(["status", "error_message"]).to_pylist()
    successes = sum(row["status"] == SUCCESS for row in rows)
    causes = dict(Counter(row["error_message"].partition(":")[0] or SUCCESS for row in rows))
    before = folder.read_record(stats_path(images), ShardStats)
    return before.model_copy(update={"successes": successes, "status_dict": causes})


def _unnamed_files(folder: Folder, version: Version) -> list[str]:
    """Return the files in the database's directories that a version does not name."""
    # Parts name their files; counts, the published index and the version have fixed names.
    named = {part.path for part in version.parts}
    named |= {stats_path(part.path) for part in version.parts_of("images")}
    named |= {f"{PUBLISHED}/{name}" for name in (INDEX_NAME, INFOS_NAME)}
    named.add(version_path(version.number))

    return [
        path for directory in _DIRECTORIES for path in folder.files(directory) if path not in named
    ]


def delete_unnamed_files(folder: Folder, version: Version) -> None:
    """Delete the files that a version does not name: older versions' and strays."""
    for path in _unnamed_files(folder, version):
        folder.delete(path)
    for parent in ("index", "neighbors", "_markers"):
        folder.delete_empty(parent)
