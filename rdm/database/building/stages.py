"""The stages of a build or an update: functions of the plan or of the last result, in one order."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import pyarrow as pa

from rdm.compute.pool import Pool
from rdm.config import Record, digest_json
from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.checks import check_budget, check_index_fits, check_left
from rdm.database.building.draft import draft_version
from rdm.database.building.embed import EmbedTask, embed_part
from rdm.database.building.near_duplicates import find_near_duplicates
from rdm.database.building.patch_sizes import measure_patches
from rdm.database.building.patchify import CutConfig, CutTask, cut_shards
from rdm.database.building.results import (
    BuildResult,
    EmbedFacts,
    IngestFacts,
    PatchFacts,
    RepairFacts,
)
from rdm.database.building.stage_results import (
    Committed,
    Embedded,
    Indexed,
    Ingested,
    Patchified,
    Repaired,
)
from rdm.database.contract import (
    CHANGES_PAGE,
    REMOVED_DIGESTS,
    RUN,
    image_paths,
    index_place,
    patches_path,
    version_place,
)
from rdm.database.embedding_parts import count_rows
from rdm.database.facts import version_facts
from rdm.database.neighbors.table import sort_table_parts
from rdm.database.neighbors.update import repair_tables
from rdm.database.search.index import (
    ParentIndex,
    build_index,
    drop_indexes,
    publish_index,
    update_index,
)
from rdm.database.search.sharded_index import IndexedRows
from rdm.database.settings import settings_of
from rdm.encoders import weights_path
from rdm.progress import tracking
from rdm.sources.causes import is_passing
from rdm.sources.ingest import IngestTask, ingest_shard
from rdm.sources.ledger import FAILED
from rdm.sources.workers import require_visible
from rdm.storage import IndexFacts, VersionStore


class StageResult(Protocol):
    """The result of a stage: a value for the next one, and the facts for people."""

    @property
    def facts(self) -> Record:
        """The counts of the stage, for people."""
        ...


ResultT = TypeVar("ResultT", bound=StageResult)


class StageRunner(Protocol):
    """Runs one stage: as a task, measured, or plainly."""

    def __call__(self, name: str, work: Callable[[], ResultT], /) -> ResultT:
        """Do the work of the stage of a name; return its result."""
        ...


def run_plainly(_name: str, work: Callable[[], ResultT]) -> ResultT:
    """Run a stage and nothing else."""
    return work()


def run_stages(plan: BuildPlan, pool: Pool, run: StageRunner = run_plainly) -> BuildResult:
    """Run all stages of a plan in order, under the writer's lock; return the version they make.

    Args:
        plan: of the run.
        pool: where shards are computed.
        run: runs each stage.
    """
    # Each stage gets the last one's result, so none can run too early.
    added = add_parts(plan, pool, run)
    # Everything new may have failed: then there is nothing to embed, index or commit.
    if isinstance(added, Ingested):
        return unchanged(plan, added.facts)

    indexed = run("index", partial(index_patches, added, pool))
    repaired = run("repair", partial(repair_neighbors, indexed, pool))
    committed = run("commit", partial(commit, repaired))

    return BuildResult(
        **dict(committed.facts),
        patch_pixels=added.patches.facts.patch_pixels,
        failed=added.patches.ingested.failed,
        causes=added.patches.ingested.causes,
        query_sets=repaired.facts.query_sets,
        device=added.device,
        unchanged=False,
    )


def add_parts(plan: BuildPlan, pool: Pool, run: StageRunner = run_plainly) -> Embedded | Ingested:
    """Run the stages that add parts: ingest, patchify, embed.

    They end after the ingest where no new photograph was usable: its result is returned.
    """
    ingested = run("ingest", partial(ingest, plan, pool))
    if ingested.plan.is_current:
        return ingested
    patchified = run("patchify", partial(patchify, ingested, pool))
    return run("embed", partial(embed, patchified, pool))


def unchanged(plan: BuildPlan, ingested: IngestFacts | None = None) -> BuildResult:
    """Return the result of a run that leaves the version as it is."""
    assert plan.parent is not None
    failed = ingested.failed if ingested else 0
    return BuildResult(**dict(version_facts(plan.parent)), failed=failed, unchanged=True)


def ingest(plan: BuildPlan, pool: Pool) -> Ingested:
    """Store the new photographs.

    Raises:
        FailureBudgetError: fewer than `min_success_rate` of the pictures are usable.
    """
    # Store the new photographs, shard by shard, on the workers.
    config = plan.config
    require_visible(pool, plan.folder, source=config.source, others=(weights_path(config.encoder),))
    tasks = _ingest_tasks(plan, _write_removed_digests(plan))
    stats = [
        result for _, result in pool.map(ingest_shard, tasks, stage="ingest", names=plan.new_stems)
    ]

    # Photographs that failed for a passing cause stay out of this version; the next run asks again.
    retryable = any(shard.retryable for shard in stats)
    after = plan.with_changes(
        plan.changes.after_ingest(_unavailable(plan) if retryable else frozenset())
    )

    # Too many failures stop the run before anything is committed.
    causes = sum((Counter(shard.status_dict) for shard in stats), Counter())
    facts = IngestFacts(
        count=sum(shard.count for shard in stats),
        successes=sum(shard.successes for shard in stats),
        failed=sum(shard.failed for shard in stats),
        causes=dict(causes),
    )
    check_budget(plan.folder, plan.parent, config, facts, len(after.changes.unavailable_again))

    # Everything that was requested again failed again: leave no shards of failures behind.
    if after.is_current:
        for stem in plan.new_stems:
            for path in image_paths(stem):
                plan.folder.delete(path)
    return Ingested(after, facts)


def patchify(ingested: Ingested, pool: Pool) -> Patchified:
    """Write the coordinates of the new photographs' patches."""
    # Near-duplicates are found before cutting: they get no patches, and so no ids.
    plan, duplicates = ingested.plan, None
    if (max_bits := plan.config.filters.near_duplicate_bits) is not None:
        duplicates = find_near_duplicates(plan.folder, plan.changes, plan.new_ledgers, max_bits)
    left_out = (
        frozenset(duplicates["image_id"].to_pylist()) if duplicates is not None else frozenset()
    )
    plan = plan.with_changes(plan.changes.after_comparison(left_out))

    # Whether the index fits is known as soon as the patches are counted, before hours of embedding.
    stats = cut_shards(_cut_tasks(plan), plan.first_new_patch, pool)
    num_patches = sum(shard.num_patches for shard in stats)
    check_index_fits(
        plan.parent, plan.config, plan.first_new_patch + num_patches - len(plan.changes.tombstones)
    )

    # Counts by cause go on from version to version.
    dropped = sum((Counter(shard.dropped) for shard in stats), Counter())
    before = Counter(plan.parent.dropped_patches if plan.parent else {})
    facts = PatchFacts(
        num_patches=num_patches,
        num_images=sum(shard.num_images for shard in stats),
        dropped=dict(dropped),
        near_duplicates=len(left_out),
        patch_pixels=measure_patches(
            plan.folder, list(map(patches_path, plan.new_parts)), plan.config.crop
        ),
    )
    return Patchified(plan, ingested.facts, duplicates, dict(before + dropped), facts)


def embed(patches: Patchified, pool: Pool) -> Embedded:
    """Embed the new patches."""
    plan = patches.plan
    config, digest, precision = plan.config, plan.encoder_record().digest, plan.precision
    tasks = [
        EmbedTask(
            plan.folder,
            part,
            config.encoder,
            digest,
            config.batch_size,
            precision,
            pool.config.device,
        )
        for part in plan.new_parts
    ]

    names = [str(part) for part in plan.new_parts]
    stats = [result for _, result in pool.map(embed_part, tasks, stage="embed", names=names)]
    facts = EmbedFacts(num_patches=sum(shard.num_patches for shard in stats))
    return Embedded(patches, pool.describe_device() if facts.num_patches else None, facts)


def index_patches(embedded: Embedded, pool: Pool | None = None) -> Indexed:
    """Build the index on the workers, or extend the parent's; without a pool, in this process."""
    plan = embedded.patches.plan
    rows = IndexedRows(plan.folder, plan.embedding_paths, plan.changes.tombstones)
    check_left(plan.folder, len(rows.living))
    with tracking("index", 1, "index") as tracker:
        place, facts = _make_index(plan, rows, pool)
        tracker.advance()
    return Indexed(embedded.patches, place, facts)


def repair_neighbors(indexed: Indexed, pool: Pool) -> Repaired:
    """Repair every neighbor table for the drafted version."""
    plan, draft = indexed.patches.plan, draft_version(indexed)
    if plan.parent is None or not plan.parent.parts_of("queryset"):
        return Repaired(plan, draft, RepairFacts(query_sets={}))

    # The workers open the draft as a version: the tables are repaired against what will be current.
    VersionStore(plan.folder).write_draft(draft)
    tables, counts = repair_tables(plan.folder, plan.parent, draft, pool)
    version = draft.model_copy(update={"parts": [*draft.parts, *sort_table_parts(tables)]})
    return Repaired(plan, version, RepairFacts(query_sets=counts))


def commit(repaired: Repaired) -> Committed:
    """Publish the index, write version and configuration, and make the version current."""
    plan, version, store = repaired.plan, repaired.version, VersionStore(repaired.plan.folder)
    plan.folder.delete(CHANGES_PAGE)  # it may show what goes now
    plan.folder.delete(REMOVED_DIGESTS)

    # Publish the index under its public names; those of old versions go.
    place = index_place(version)
    publish_index(plan.folder, place)
    recent = store.numbers()[1 - plan.config.index.keep_versions :]
    drop_indexes(plan.folder, {place, *(index_place(store.require(number)) for number in recent)})

    # The pointer moves last: a reader sees the old version or the new one, whole.
    plan.folder.write_json(RUN, version.config)
    store.commit(version)
    return Committed(version_facts(version))


def _write_removed_digests(plan: BuildPlan) -> str:
    """Write the digests that workers must refuse; return the path, or "" where none are."""
    removed = plan.changes.diff.removed_digests
    if not plan.new_stems or not removed:
        return ""
    # The name is the content's digest: a rerun with another removal does not read this one.
    path = f"{REMOVED_DIGESTS}/{digest_json(sorted(removed))}.json"
    plan.folder.write_json(path, sorted(removed))
    return path


def _ingest_tasks(plan: BuildPlan, refused: str) -> list[IngestTask]:
    config, new, size = plan.config, plan.changes.diff.new_rows, plan.config.images_per_shard
    tasks = []
    for number, stem in enumerate(plan.new_stems):
        # `take` copies: a slice would be sent to the workers together with the whole table.
        rows = new.take(pa.array(range(number * size, min((number + 1) * size, len(new)))))
        tasks.append(
            IngestTask(
                plan.folder, stem, config.source, rows, config.fetch, config.filters, refused
            )
        )
    return tasks


def _unavailable(plan: BuildPlan) -> frozenset[str]:
    """Return the new photographs that failed for causes that may pass."""
    names = ["image_id", "status", "error_message"]
    rows = (
        row for path in plan.new_ledgers for row in plan.folder.read_table(path, names).to_pylist()
    )
    return frozenset(
        row["image_id"]
        for row in rows
        if row["status"] == FAILED and is_passing(row["error_message"])
    )


def _cut_tasks(plan: BuildPlan) -> list[CutTask]:
    config = CutConfig(crop=plan.config.crop, boxes=plan.config.boxes, filters=plan.config.filters)
    size, new = plan.config.images_per_shard, plan.changes.diff.new_rows["image_id"]
    removed_patches = plan.changes.diff.removed_patches
    # Tasks carry only what concerns their shard: they are sent to the workers.
    tasks = []
    for number, (stem, part) in enumerate(zip(plan.new_stems, plan.new_parts, strict=True)):
        ids = new.slice(number * size, size).to_pylist()
        boxes = plan.boxes.subset(ids) if plan.boxes is not None else None
        dropped = tuple(sorted(plan.changes.near_duplicates.intersection(ids)))
        removed = {name: removed_patches[name] for name in ids if name in removed_patches}
        tasks.append(CutTask(plan.folder, stem, part, config, dropped, boxes, removed))
    return tasks


def _make_index(plan: BuildPlan, rows: IndexedRows, pool: Pool | None) -> tuple[str, IndexFacts]:
    """Build the version's index, extend the parent's, or keep it; return its folder and facts."""
    config, parent, place = plan.config.index, plan.parent, version_place(plan.number)
    if parent is None:
        return place, build_index(rows, config, place, pool=pool)
    if settings_of(parent).index != config:
        return place, build_index(rows, config, place, "its settings were changed", pool)

    # The same vectors live as before: the parent's index serves this version, too.
    first, before, dead = parent.next_patch_id, index_place(parent), plan.changes.newly_dead
    if count_rows(rows.parts) == first and len(dead) == 0:
        return before, parent.index

    return place, update_index(
        rows, config, place, ParentIndex(before, parent.index, first, dead), pool
    )
