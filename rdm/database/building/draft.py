"""The draft of the version that a run will commit: all of it but the repaired neighbor tables."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.stage_results import Indexed
from rdm.database.contract import DUPLICATES_KIND, INDEX_KINDS, TABLE_KINDS, duplicates_path
from rdm.database.settings import recorded
from rdm.database.shards import count_living_images, describe_index, describe_shard
from rdm.sources.source import fingerprint
from rdm.storage import Part, Version, VersionStore


def draft_version(indexed: Indexed) -> Version:
    """Return the version to commit, without its neighbor tables."""
    plan, parts = indexed.patches.plan, _parts(indexed)
    diff, tombstones = plan.changes.diff, plan.changes.tombstones

    # Deleted patches keep their rows, so the number of rows is the next free patch id.
    num_patches = sum(part.num_rows for part in parts if part.kind == "patches")

    return Version(
        number=plan.number,
        parent=plan.parent.number if plan.parent else None,
        source=plan.config.source,
        source_fingerprint=fingerprint(plan.changes.taken),
        num_images=count_living_images(plan.folder, parts, tombstones),
        num_patches=num_patches,
        next_patch_id=num_patches,
        embedding_dim=plan.embedding_dim(),
        encoder=plan.encoder_record(),
        index=indexed.facts,
        tombstones=tombstones.tolist(),
        parts=parts,
        deleted_image_ids=sorted(diff.removed_images),
        deleted_patches=diff.removed_patches,
        deleted_sha256=sorted(diff.removed_digests),
        dropped_patches=indexed.patches.dropped,
        config=recorded(plan.config),
        oldest_version=plan.parent.oldest_version if plan.parent else 1,
    )


def _parts(indexed: Indexed) -> list[Part]:
    """Return the parts of the version to commit, without its neighbor tables."""
    plan = indexed.patches.plan
    store = VersionStore(plan.folder)

    # The parent's parts stand, but for the kinds that every version has whole and anew.
    replaced = (*INDEX_KINDS, DUPLICATES_KIND, *TABLE_KINDS)
    parts = [part for part in plan.parent.parts if part.kind not in replaced] if plan.parent else []
    for number, stem in zip(plan.new_parts, plan.new_stems, strict=True):
        parts += describe_shard(store, stem, number)

    duplicates = _duplicates_part(plan, store, indexed.patches.duplicates)
    return [*parts, *duplicates, *describe_index(store, indexed.place, indexed.facts)]


def _duplicates_part(
    plan: BuildPlan, store: VersionStore, duplicates: pa.Table | None
) -> Sequence[Part]:
    """Return the near-duplicates' part: the parent's if they are the same; none without any."""
    before = plan.parent.parts_of(DUPLICATES_KIND) if plan.parent else []
    if duplicates is None or duplicates.num_rows == 0:
        return []
    if before and plan.folder.read_table(before[0].path).equals(duplicates):
        return before
    path = duplicates_path(plan.number)
    plan.folder.write_table(path, duplicates)
    return [store.describe_part(DUPLICATES_KIND, path, duplicates.num_rows)]
