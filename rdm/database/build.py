"""Build a database and bring it up to date: stages that resume, and a version that is committed last."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rdm.compute.shards import Pool
from rdm.config import Config
from rdm.database.embed import EmbedTask, embed_part
from rdm.database.facade import RetrievalDatabase
from rdm.database.index import INDEX_PATH, INFOS_PATH, IndexConfig, build_index
from rdm.database.patches import patches_path, patchify_shard
from rdm.encoders import load_encoder
from rdm.errors import DatabaseError, FailureBudgetError, SourceError
from rdm.progress import tracking
from rdm.sources import CropConfig, open_source
from rdm.sources.ingest import SUCCESS, IngestTask, ingest_shard
from rdm.sources.listing import fingerprint
from rdm.storage import Folder, Part, Version, VersionStore


class BuildConfig(Config):
    """Everything that decides what a database holds."""

    source: str = Field(description="specification of the source, such as samples://openimages-birds/database")
    encoder: str = Field(default="assets://encoder-lite", description="image and text encoder")
    crop: CropConfig = CropConfig()
    index: IndexConfig = IndexConfig()
    images_per_shard: int = Field(default=1000, ge=1, le=10_000, description="photographs per tar")
    batch_size: int = Field(default=64, ge=1, description="patches encoded at once")
    min_success_rate: float = Field(default=0.9, ge=0, le=1, description="share of the photographs that must be usable")


class DatabaseBuilder:
    """The stages of one build or update of the database at a root. Call them in order, inside `writing()`.

    A build of a finished database with the same configuration and an unchanged source does nothing. When the source has
    changed, what is new gets new image shards and patch ids, and the patches of photographs that vanished or were
    replaced become tombstones.
    """

    def __init__(self, root: str, config: BuildConfig) -> None:
        self.folder = Folder(root)
        self.config = config
        self.store = VersionStore(self.folder)
        self.delete_images: frozenset[str] = frozenset()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock and write the configuration down.

        Raises:
            ConcurrentWriterError: another process is writing the database.
            DatabaseError: the root holds something else, or a database of another configuration.
        """
        with self.store.writer():
            self._forget()
            self._check_parent()
            self.folder.write_json("run.json", self.config.model_dump(mode="json"))
            yield

    def _forget(self) -> None:
        # What was read before the lock was held may be out of date: another writer may have committed since.
        for name in (
            "parent",
            "listing",
            "is_current",
            "_old_ledger",
            "_living_images",
            "_new_rows",
            "_gone_images",
            "_tombstones",
        ):
            self.__dict__.pop(name, None)

    @cached_property
    def parent(self) -> Version | None:
        """The version that this run starts from; None for a first build."""
        return self.store.current()

    @cached_property
    def listing(self) -> pa.Table:
        """The photographs of the source, without those whose deletion was asked for.

        Raises:
            SourceError: there is none.
        """
        table = open_source(self.config.source).listing()
        if table.num_rows == 0:
            raise SourceError("the source is empty", where=self.config.source, fix="check the specification")
        barred = set(self.delete_images) | set(self.parent.deleted_image_ids if self.parent else ())
        return table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(sorted(barred), pa.string()))))

    @cached_property
    def is_current(self) -> bool:
        """Whether the parent version already holds exactly what the source has."""
        if self.parent is None or not self.delete_images <= set(self.parent.deleted_image_ids):
            return False
        return self._new_rows.num_rows == 0 and not self._gone_images

    def plan(self) -> dict[str, int]:
        """Return what a run would do, in photographs."""
        return {"photographs": self.listing.num_rows, "new": self._new_rows.num_rows, "gone": len(self._gone_images)}

    def unknown_images(self) -> set[str]:
        """Return those images whose deletion was asked for that the database never had."""
        known = set(self._old_ledger["image_id"].to_pylist()) if self._old_ledger is not None else set()
        return set(self.delete_images) - known

    def ingest(self, pool: Pool) -> dict[str, Any]:
        """Store the new photographs; return counts by status and cause.

        Raises:
            FailureBudgetError: fewer than `min_success_rate` of the pictures are usable.
        """
        tasks = self._ingest_tasks()
        stats = [result for _, result in pool.map(ingest_shard, tasks, stage="ingest", names=[t.stem for t in tasks])]
        causes = sum((Counter(shard["status_dict"]) for shard in stats), Counter())
        counts = {name: sum(shard[name] for shard in stats) for name in ("count", "successes", "failed")}
        asked = counts["successes"] + counts["failed"]
        empty = self.parent is None and counts["successes"] == 0
        if empty or counts["successes"] < self.config.min_success_rate * asked:
            causes.pop("success", None)
            summary = ", ".join(f"{number} {cause}" for cause, number in causes.most_common())
            raise FailureBudgetError(
                f"only {counts['successes']} of {asked} pictures are usable: {summary}",
                where=f"{self.config.source}; a row for each in {self.folder.describe('images')}",
                fix="mend the source, or lower min_success_rate",
            )
        return {**counts, "causes": dict(causes)}

    def patchify(self) -> dict[str, Any]:
        """Write the coordinates of the new photographs' patches; return counts."""
        first, part = self._first_new_patch, self._first_new_part
        totals: Counter[str] = Counter()
        stems = self._new_stems
        with tracking("patchify", len(stems), "shards") as tracker:
            for stem in stems:
                stats = patchify_shard(self.folder, stem, part, first, self.config.crop)
                totals.update(stats)
                first, part = first + stats["num_patches"], part + 1
                tracker.advance()
        return dict(totals)

    def embed(self, pool: Pool) -> dict[str, Any]:
        """Embed the new patches; return counts."""
        digest = load_encoder(self.config.encoder).fingerprint.digest()
        tasks = [
            EmbedTask(self.folder, self._first_new_part + number, self.config.encoder, digest, self.config.batch_size)
            for number in range(len(self._new_stems))
        ]
        stats = [result for _, result in pool.map(embed_part, tasks, stage="embed", names=[str(t.part) for t in tasks])]
        return {"num_patches": sum(shard["num_patches"] for shard in stats)}

    def build_index(self) -> dict[str, Any]:
        """Build the index over all living patches; return its infos with the measured recall."""
        vectors = [self.folder.read_array(path) for path in self._embedding_paths]
        if len(self._tombstones) == sum(len(part) for part in vectors):
            raise DatabaseError(
                "no patch would be left",
                where=self.folder.url,
                fix="keep at least one photograph, or remove the whole folder",
            )
        with tracking("index", 1, "index") as tracker:
            infos = build_index(self.folder, np.concatenate(vectors), self._tombstones, self.config.index)
            tracker.advance()
        self._index_infos = infos
        return infos

    def commit(self) -> Version:
        """Describe every part, write the version, and make it the current one."""
        encoder = load_encoder(self.config.encoder)
        parts = self._parts()
        patches = sum(part.num_rows for part in parts if part.kind == "patches")
        version = Version(
            number=(self.parent.number if self.parent else 0) + 1,
            parent=self.parent.number if self.parent else None,
            source=self.config.source,
            source_fingerprint=fingerprint(self.listing),
            num_images=self._num_living_images(parts),
            num_patches=patches,
            next_patch_id=patches,
            embedding_dim=encoder.embedding_dim,
            encoder={
                "name": self.config.encoder,
                "digest": encoder.fingerprint.digest(),
                "fingerprint": encoder.fingerprint.model_dump(mode="json"),
            },
            index=self._index_infos,
            tombstones=self._tombstones.tolist(),
            parts=parts,
            deleted_image_ids=sorted({*self.delete_images, *(self.parent.deleted_image_ids if self.parent else ())}),
            config=self.config.model_dump(mode="json"),
        )
        self.store.commit(version)
        return version

    def _check_parent(self) -> None:
        if self.parent is None:
            return
        encoder = load_encoder(self.config.encoder)
        RetrievalDatabase(self.folder, self.parent).check_encoder(encoder)
        recorded = BuildConfig.model_validate(self.parent.config)
        fixed = ("crop", "source", "images_per_shard")
        differing = [name for name in fixed if getattr(recorded, name) != getattr(self.config, name)]
        if differing:
            raise DatabaseError(
                f"the database was built with another {', '.join(differing)}",
                where=self.folder.url,
                fix="give --root a new folder, or the configuration in its run.json",
            )

    @cached_property
    def _old_ledger(self) -> pa.Table | None:
        parts = self.parent.parts_of("ledger") if self.parent else []
        columns = ["image_id", "etag", "status"]
        return pa.concat_tables([self.folder.read_table(part.path, columns) for part in parts]) if parts else None

    @cached_property
    def _living_images(self) -> set[str]:
        if self.parent is None:
            return set()
        tombstones = np.array(self.parent.tombstones, np.int64)
        living: set[str] = set()
        for part in self.parent.parts_of("patches"):
            table = self.folder.read_table(part.path, ["patch_id", "image_id"])
            alive = np.isin(table["patch_id"].to_numpy(), tombstones, invert=True)
            living.update(table["image_id"].filter(pa.array(alive)).to_pylist())
        return living

    @cached_property
    def _new_rows(self) -> pa.Table:
        if self._old_ledger is None:
            return self.listing
        # The last row of an id counts. A photograph that was deleted and is in the source again is new.
        known = {
            image_id: etag
            for image_id, etag, status in zip(*self._old_ledger.to_pydict().values(), strict=True)
            if status != SUCCESS or image_id in self._living_images
        }
        rows = zip(self.listing["image_id"].to_pylist(), self.listing["etag"].to_pylist(), strict=True)
        return self.listing.filter(pa.array([known.get(image_id) != etag for image_id, etag in rows], pa.bool_()))

    @cached_property
    def _gone_images(self) -> set[str]:
        replaced = self._living_images & set(self._new_rows["image_id"].to_pylist())
        return (self._living_images - set(self.listing["image_id"].to_pylist())) | replaced

    @cached_property
    def _tombstones(self) -> np.ndarray:
        dead = set(self.parent.tombstones) if self.parent else set()
        for part in self.parent.parts_of("patches") if self.parent and self._gone_images else []:
            table = self.folder.read_table(part.path, ["patch_id", "image_id"])
            mask = pc.is_in(table["image_id"], pa.array(sorted(self._gone_images), pa.string()))
            dead.update(table.filter(mask)["patch_id"].to_pylist())
        return np.array(sorted(dead), np.int64)

    @property
    def _first_new_part(self) -> int:
        return len(self.parent.parts_of("patches")) if self.parent else 0

    @property
    def _first_new_patch(self) -> int:
        return self.parent.next_patch_id if self.parent else 0

    @property
    def _new_stems(self) -> list[str]:
        first = len(self.parent.parts_of("images")) if self.parent else 0
        count = -(-self._new_rows.num_rows // self.config.images_per_shard)
        return [f"{first + number:05d}" for number in range(count)]

    def _ingest_tasks(self) -> list[IngestTask]:
        size = self.config.images_per_shard
        return [
            IngestTask(self.folder, stem, self.config.source, tuple(self._new_rows.slice(n * size, size).to_pylist()))
            for n, stem in enumerate(self._new_stems)
        ]

    @property
    def _embedding_paths(self) -> list[str]:
        return [f"img_emb/img_emb_{part:04d}.npy" for part in range(self._first_new_part + len(self._new_stems))]

    def _parts(self) -> list[Part]:
        parts = [part for part in self.parent.parts if part.kind not in ("index", "infos")] if self.parent else []
        for number, stem in enumerate(self._new_stems, start=self._first_new_part):
            ledger = self.folder.read_table(f"images/{stem}.parquet", columns=["status"])
            rows = self.folder.read_table(patches_path(number), columns=["patch_id"]).num_rows
            parts += [
                self.store.describe_part("images", f"images/{stem}.tar", ledger.num_rows),
                self.store.describe_part("ledger", f"images/{stem}.parquet", ledger.num_rows),
                self.store.describe_part("patches", patches_path(number), rows),
                self.store.describe_part("embeddings", f"img_emb/img_emb_{number:04d}.npy", rows),
                self.store.describe_part("metadata", f"metadata/metadata_{number:04d}.parquet", rows),
            ]
        total = sum(part.num_rows for part in parts if part.kind == "patches")
        return [
            *parts,
            self.store.describe_part("index", INDEX_PATH, total),
            self.store.describe_part("infos", INFOS_PATH, 1),
        ]

    def _num_living_images(self, parts: list[Part]) -> int:
        tables = [
            self.folder.read_table(part.path, ["patch_id", "image_id"]) for part in parts if part.kind == "patches"
        ]
        everything = pa.concat_tables(tables)
        living = pc.invert(pc.is_in(everything["patch_id"], pa.array(self._tombstones)))
        return pc.count_distinct(everything.filter(living)["image_id"]).as_py()
