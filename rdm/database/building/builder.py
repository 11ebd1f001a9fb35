"""Build a database and bring it up to date: stages that resume, and a version that is committed last."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import cast

import pyarrow as pa

from rdm.compute.pool import Pool
from rdm.config import digest_json
from rdm.database.building.checks import check_index_fits, check_left, check_settings, check_vanished
from rdm.database.building.embed import EmbedTask, embed_part
from rdm.database.building.near_duplicates import find_near_duplicates
from rdm.database.building.patch_sizes import measure_patches
from rdm.database.building.patchify import CutConfig, CutTask, cut_shards
from rdm.database.building.results import EmbedFacts, IngestFacts, PatchFacts
from rdm.database.changes.plan import Changes, Removal
from rdm.database.contract import (
    CHANGES_PAGE,
    DUPLICATES_KIND,
    INDEX_KINDS,
    REMOVED_DIGESTS,
    RUN,
    TABLE_KINDS,
    duplicates_path,
    embeddings_path,
    image_paths,
    index_place,
    patches_path,
    version_place,
)
from rdm.database.embedding_parts import count_rows
from rdm.database.neighbors.table import sort_table_parts
from rdm.database.neighbors.update import TableRepair, repair_tables
from rdm.database.reader import RetrievalDatabase
from rdm.database.search.index import (
    ParentIndex,
    build_index,
    drop_indexes,
    publish_index,
    update_index,
)
from rdm.database.search.sharded_index import IndexedRows
from rdm.database.settings import BuildConfig, has_changed, recorded, settings_of
from rdm.database.shards import count_living_images, describe_index, describe_shard
from rdm.encoders import Precision, fastest_precision, load_encoder, weights_path
from rdm.errors import FailureBudgetError, SourceError
from rdm.progress import tracking
from rdm.sources import open_source
from rdm.sources.causes import is_passing
from rdm.sources.ingest import IngestTask, ingest_shard
from rdm.sources.kinds.imported import is_imported
from rdm.sources.ledger import FAILED
from rdm.sources.open import open_boxes
from rdm.sources.photographs.boxes import Boxes
from rdm.sources.source import fingerprint
from rdm.sources.workers import require_visible
from rdm.storage import EncoderRecord, Folder, IndexFacts, Part, Version, VersionStore


class DatabaseBuilder:
    """The stages of one build or update of the database at a root. Call them in order, inside `writing()`.

    A build of a finished database with the same configuration and an unchanged source does nothing. When the source has
    changed, what is new gets new image shards and patch ids, and the patches of photographs that vanished or were
    replaced become tombstones. With other settings, where they are not fixed, there is a new version with them.
    """

    def __init__(self, root: str, config: BuildConfig) -> None:
        self.folder = Folder(root)
        self.config = config
        self.store = VersionStore(self.folder)
        self.removal = Removal()
        self.retry_failed = False
        self.only_delete = False
        self._table_parts: list[Part] | None = None
        self._duplicates: pa.Table | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock, and check what is asked for.

        Raises:
            ConcurrentWriterError: another process is writing the database.
            DatabaseError: the root holds something else, or a database of another configuration.
            SourceError: the source is empty, or lacks most of what the database has.
        """
        with self.store.writer():
            self._forget()
            self.check()
            yield

    def _forget(self) -> None:
        # What was read before the lock was held may be out of date: another writer may have committed since.
        for name in ("parent", "changes", "_draft"):
            self.__dict__.pop(name, None)
        self._table_parts = None

    @cached_property
    def parent(self) -> Version | None:
        """The version that this run starts from; None for a first build."""
        return self.store.current()

    @cached_property
    def changes(self) -> Changes:
        """What this run adds and deletes.

        Raises:
            SourceError: the source is empty.
        """
        table = self._listing()
        if table is not None and table.num_rows == 0:
            raise SourceError("the source is empty", where=self.config.source, fix="check the specification")
        return Changes(self.folder, self.parent, table, self.removal, retry_failed=self.retry_failed)

    @cached_property
    def _boxes(self) -> Boxes | None:
        if self.config.crop.mode != "boxes":
            return None
        return open_boxes(open_source(self.config.source), self.config.boxes)

    def _listing(self) -> pa.Table | None:
        if self.parent is not None and (self.only_delete or is_imported(self.config.source)):
            return None
        table = open_source(self.config.source).listing()
        return table if self._boxes is None else self._boxes.annotate(table)

    @property
    def is_current(self) -> bool:
        """Whether the parent version already holds exactly what the source has, with these settings."""
        return self.parent is not None and self.changes.is_empty and not has_changed(self.config, self.parent)

    def plan(self) -> dict[str, int]:
        """Return what a run would do, in photographs and patches; raises what `writing` does of the request."""
        self.check()
        return self.changes.counts()

    def trial(self, root: str, num_photographs: int) -> DatabaseBuilder:
        """Return a builder of a small database with the first of the new photographs, to measure its stages."""
        builder = DatabaseBuilder(root, self.config.model_copy(update={"min_success_rate": 0.0}))
        builder.changes = Changes(builder.folder, None, self.changes.new_rows.slice(0, num_photographs), Removal())
        builder._boxes = self._boxes
        return builder

    def ingest(self, pool: Pool) -> IngestFacts:
        """Store the new photographs; return counts by status and cause.

        Raises:
            FailureBudgetError: fewer than `min_success_rate` of the pictures are usable.
        """
        require_visible(pool, self.folder, source=self.config.source, others=(weights_path(self.config.encoder),))
        tasks = self._ingest_tasks(self._write_removed_digests())
        stats = [result for _, result in pool.map(ingest_shard, tasks, stage="ingest", names=[t.stem for t in tasks])]
        causes = sum((Counter(shard.status_dict) for shard in stats), Counter())
        causes.pop("success", None)
        count, successes = sum(shard.count for shard in stats), sum(shard.successes for shard in stats)
        unusable = sum(shard.failed for shard in stats)
        self.changes.keep(self._unavailable() if any(shard.retryable for shard in stats) else set())
        failed = unusable - len(self.changes.unavailable_again)  # what the ledgers tell already stops nothing
        asked = successes + failed
        empty = self.parent is None and successes == 0
        tolerated = self.config.tolerated_failures if self.parent is not None else 0
        too_few = successes < self.config.min_success_rate * asked
        if empty or (too_few and failed > tolerated):
            summary = ", ".join(f"{number} {cause}" for cause, number in causes.most_common())
            raise FailureBudgetError(
                f"only {successes} of {asked} pictures are usable: {summary}",
                where=f"{self.config.source}; a row for each in {self.folder.describe('images')}",
                fix="mend the source, or accept fewer with --set min_success_rate=0.5; "
                "the same command fetches again what may have passed",
            )
        if self.is_current:  # what was asked for again cannot be had yet
            for task in tasks:
                for path in image_paths(task.stem):
                    self.folder.delete(path)
        return IngestFacts(count=count, successes=successes, failed=unusable, causes=dict(causes))

    def _unavailable(self) -> set[str]:
        """Return those of the new photographs that could not be had for causes that may pass."""
        names = ["image_id", "status", "error_message"]
        tables = [self.folder.read_table(image_paths(stem)[1], columns=names) for stem in self._new_stems]
        rows = (row for table in tables for row in table.to_pylist())
        return {row["image_id"] for row in rows if row["status"] == FAILED and is_passing(row["error_message"])}

    def patchify(self, pool: Pool) -> PatchFacts:
        """Write the coordinates of the new photographs' patches; return counts, of patches left out by cause too."""
        if (max_bits := self.config.filters.near_duplicate_bits) is not None:
            self._duplicates = find_near_duplicates(self.folder, self.changes, self._new_stems, max_bits)
        left_out = set(self._duplicates["image_id"].to_pylist()) if self._duplicates is not None else set()
        self.changes.leave_out(left_out)
        stats = cut_shards(self._cut_tasks(left_out), self._first_new_patch, pool)
        before = self.parent.dropped_patches if self.parent else {}
        self._dropped = sum((Counter(shard.dropped) for shard in stats), Counter(before))
        num_patches = sum(shard.num_patches for shard in stats)
        living = self._first_new_patch + num_patches - len(self.changes.tombstones)
        check_index_fits(self.parent, self.config, living)
        paths = [patches_path(self._first_new_part + number) for number in range(len(self._new_stems))]
        sizes = measure_patches(self.folder, paths, self.config.crop)
        return PatchFacts(
            num_patches=num_patches,
            num_images=sum(shard.num_images for shard in stats),
            dropped=dict(self._dropped - Counter(before)),
            near_duplicates=len(left_out),
            patch_pixels=sizes,
        )

    def _cut_tasks(self, left_out: set[str]) -> list[CutTask]:
        config = CutConfig(crop=self.config.crop, boxes=self.config.boxes, filters=self.config.filters)
        size, new = self.config.images_per_shard, self.changes.new_rows["image_id"]
        tasks = []
        for number, stem in enumerate(self._new_stems):
            ids = new.slice(number * size, size).to_pylist()
            boxes = self._boxes.subset(ids) if self._boxes is not None else None
            dropped = tuple(sorted(left_out.intersection(ids)))
            removed = {name: self.changes.removed_patches[name] for name in ids if name in self.changes.removed_patches}
            tasks.append(CutTask(self.folder, stem, self._first_new_part + number, config, dropped, boxes, removed))
        return tasks

    def embed(self, pool: Pool) -> EmbedFacts:
        """Embed the new patches; return counts."""
        config, digest = self.config, self._encoder.digest
        tasks = [
            EmbedTask(
                self.folder,
                self._first_new_part + n,
                config.encoder,
                digest,
                config.batch_size,
                self.precision,
                pool.config.device,
            )
            for n in range(len(self._new_stems))
        ]
        stats = [result for _, result in pool.map(embed_part, tasks, stage="embed", names=[str(t.part) for t in tasks])]
        return EmbedFacts(num_patches=sum(shard.num_patches for shard in stats))

    @property
    def precision(self) -> Precision:
        """All vectors of a database are made in one precision: that of its first build."""
        if self.parent is not None:
            return cast(Precision, self.parent.encoder.precision)
        return fastest_precision(self.config.encoder) if self.config.precision == "auto" else self.config.precision

    def build_index(self, pool: Pool | None = None) -> IndexFacts:
        """Build the index on the workers, or bring the parent's up to date; return its infos with the measured recall.

        Without a pool it is built in this process.
        """
        rows = IndexedRows(self.folder, self._embedding_paths, self.changes.tombstones)
        check_left(self.folder, len(rows.living))
        with tracking("index", 1, "index") as tracker:
            self._index_place, self._index_infos = self._make_index(rows, pool)
            tracker.advance()
        return self._index_infos

    def _make_index(self, rows: IndexedRows, pool: Pool | None) -> tuple[str, IndexFacts]:
        config, place = self.config.index, version_place(self._number)
        if self.parent is None:
            return place, build_index(rows, config, place, pool=pool)
        if settings_of(self.parent).index != config:
            return place, build_index(rows, config, place, "its settings were changed", pool)
        first, before = self.parent.next_patch_id, index_place(self.parent)
        if count_rows(rows.parts) == first and len(self.changes.newly_dead) == 0:
            return before, self.parent.index
        parent = ParentIndex(before, self.parent.index, first, self.changes.newly_dead)
        return place, update_index(rows, config, place, parent, pool)

    def repair_neighbors(self, pool: Pool) -> dict[str, TableRepair]:
        """Bring the neighbors of every query set to what this version's patches make of them; return counts."""
        if self.parent is None or not self.parent.parts_of("queryset"):
            return {}
        self.store.write_draft(self._draft)
        self._table_parts, counts = repair_tables(self.folder, self.parent, self._draft, pool)
        return counts

    def commit(self) -> Version:
        """Publish the index, describe every part, write version and configuration, and make the version current."""
        no_tables = self.parent is None or not self.parent.parts_of("queryset")
        assert no_tables or self._table_parts is not None, "the neighbors were not repaired"
        tables = sort_table_parts(self._table_parts or [])
        version = self._draft.model_copy(update={"parts": [*self._draft.parts, *tables]})
        self.folder.delete(CHANGES_PAGE)  # it may show what goes now
        self.folder.delete(REMOVED_DIGESTS)
        publish_index(self.folder, self._index_place)
        recent = self.store.numbers()[1 - self.config.index.keep_versions :]
        drop_indexes(self.folder, {self._index_place, *(index_place(self.store.require(n)) for n in recent)})
        self.folder.write_json(RUN, version.config)
        self.store.commit(version)
        return version

    @cached_property
    def _draft(self) -> Version:
        """The version to commit, without its neighbor tables."""
        parts = self._parts()
        patches = sum(part.num_rows for part in parts if part.kind == "patches")
        return Version(
            number=self._number,
            parent=self.parent.number if self.parent else None,
            source=self.config.source,
            source_fingerprint=fingerprint(self.changes.taken),
            num_images=count_living_images(self.folder, parts, self.changes.tombstones),
            num_patches=patches,
            next_patch_id=patches,
            embedding_dim=self.parent.embedding_dim if self.parent else load_encoder(self.config.encoder).embedding_dim,
            encoder=self._encoder,
            index=self._index_infos,
            tombstones=self.changes.tombstones.tolist(),
            parts=parts,
            deleted_image_ids=sorted(self.changes.removed_images),
            deleted_patches=self.changes.removed_patches,
            deleted_sha256=sorted(self.changes.removed_digests),
            dropped_patches=dict(self._dropped),
            config=recorded(self.config),
            oldest_version=self.parent.oldest_version if self.parent else 1,
        )

    @property
    def _encoder(self) -> EncoderRecord:
        """What a version records of the encoder. The parent's was compared with it, and a removal needs none."""
        if self.parent is not None:
            return self.parent.encoder.model_copy(update={"name": self.config.encoder, "precision": self.precision})
        fingerprint = load_encoder(self.config.encoder).fingerprint
        return EncoderRecord(
            name=self.config.encoder,
            digest=fingerprint.digest(),
            precision=self.precision,
            fingerprint=fingerprint.model_dump(mode="json"),
        )

    def check(self) -> None:
        """Refuse what cannot become the next version.

        Raises:
            DatabaseError: a fixed setting differs, or no patch would be left.
            EncoderMismatchError: the encoder is another one than that of the stored vectors.
            SourceError: the source is empty, or lacks most of what the database has.
        """
        if self.parent is None:
            return
        check_settings(self.folder, self.parent, self.config)
        check_vanished(self.changes, self.config)
        counts = self.changes.counts()
        if counts["new"] or self.config.encoder != self.parent.encoder.name:
            RetrievalDatabase(self.folder, self.parent).check_encoder(load_encoder(self.config.encoder))
        if not counts["new"]:
            check_left(self.folder, self.parent.num_live_patches - counts["gone_patches"])

    @property
    def _number(self) -> int:
        return self.parent.number + 1 if self.parent else 1

    @property
    def _first_new_part(self) -> int:
        return len(self.parent.parts_of("patches")) if self.parent else 0

    @property
    def _first_new_patch(self) -> int:
        return self.parent.next_patch_id if self.parent else 0

    @property
    def _new_stems(self) -> list[str]:
        first = len(self.parent.parts_of("images")) if self.parent else 0
        count = -(-self.changes.new_rows.num_rows // self.config.images_per_shard)
        return [f"{first + number:05d}" for number in range(count)]

    def _write_removed_digests(self) -> str:
        """Put down for the workers what they must refuse; return the path, or nothing where nothing was removed."""
        if not self._new_stems or not self.changes.removed_digests:
            return ""
        digests = sorted(self.changes.removed_digests)
        path = f"{REMOVED_DIGESTS}/{digest_json(digests)}.json"
        self.folder.write_json(path, digests)
        return path

    def _ingest_tasks(self, refused: str) -> list[IngestTask]:
        config, new = self.config, self.changes.new_rows
        size = config.images_per_shard
        return [
            IngestTask(
                self.folder,
                stem,
                config.source,
                new.take(pa.array(range(n * size, min((n + 1) * size, len(new))))),  # a slice would travel as the whole
                config.fetch,
                config.filters,
                refused,
            )
            for n, stem in enumerate(self._new_stems)
        ]

    @property
    def _embedding_paths(self) -> tuple[str, ...]:
        old = self.parent.parts_of("embeddings") if self.parent else []
        new = [embeddings_path(self._first_new_part + n) for n in range(len(self._new_stems))]
        return (*(part.path for part in old), *new)

    def _parts(self) -> list[Part]:
        left_out = (*INDEX_KINDS, DUPLICATES_KIND, *TABLE_KINDS)
        parts = [part for part in self.parent.parts if part.kind not in left_out] if self.parent else []
        for number, stem in enumerate(self._new_stems, start=self._first_new_part):
            parts += describe_shard(self.store, stem, number)
        index = describe_index(self.store, self._index_place, self._index_infos)
        return [*parts, *self._duplicates_part(), *index]

    def _duplicates_part(self) -> list[Part]:
        before = self.parent.parts_of(DUPLICATES_KIND) if self.parent else []
        if self._duplicates is None or self._duplicates.num_rows == 0:
            return []
        if before and self.folder.read_table(before[0].path).equals(self._duplicates):
            return before
        path = duplicates_path(self._number)
        self.folder.write_table(path, self._duplicates)
        return [self.store.describe_part(DUPLICATES_KIND, path, self._duplicates.num_rows)]
