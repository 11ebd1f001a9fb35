"""A real database through any sequence of changes and compactions equals a new build of the same
photographs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, NeighborTable, RetrievalDatabase, build_neighbors
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.building.results import BuildResult
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.sampling.retrieval.queries import query_set_proposal
from rdm.sources import CropConfig, QuerySetConfig

INLINE = ComputeConfig(dask="inline")
K = 5
LEAST = 4  # photographs, so that K neighbors are always there
Build = Callable[..., BuildResult]


def look_up(root: Path, queries: Path) -> None:
    crop = CropConfig(frame_size=40, patch_size=24)
    asked = QuerySetConfig(source=f"folder://{queries}", crop=crop, images_per_shard=4)
    with compute_pool(INLINE) as pool:
        build_neighbors(str(root), "train", NeighborConfig(queries=asked, k_stored=K), pool)


def told(root: Path) -> dict[str, Any]:
    """Return what a database answers, by photograph and box: ids are given once, so those of a new
    build differ."""
    database = RetrievalDatabase.open(str(root))
    ids = database.living_ids()
    names = {record.patch_id: (record.image_id, record.box) for record in database.records(ids)}
    table = NeighborTable(database.folder, "train")
    proposal = query_set_proposal(database, table.info.queries_digest)
    shards = [table.shard(stem) for stem in table.info.stems]
    found = database.search_vectors(
        np.concatenate([table.embeddings(stem) for stem in table.info.stems]), K
    )
    return {
        "vectors": {
            names[i]: v.tobytes()
            for i, v in zip(ids.tolist(), database.embeddings(ids), strict=True)
        },
        "neighbors": [[names[i] for i in row] for _, rows, _ in shards for row in rows.tolist()],
        "similarities": [row.tobytes() for _, _, rows in shards for row in rows],
        "search": [[names[i] for i in row] for row in found[0].tolist()],
        "proposal": {
            names[i]: n
            for i, n in zip(proposal.ids.tolist(), proposal.counts.tolist(), strict=True)
        },
    }


class Changes(RuleBasedStateMachine):
    """Adds, replaces, loses, removes and compacts; at the end, all of it is compared with a new
    build."""

    build: Build
    encoded: Callable[..., bytes]

    @initialize()
    def start(self) -> None:
        self.base = Path(tempfile.mkdtemp())
        for name, seeds in (("photos", range(6)), ("queries", range(100, 106))):
            (self.base / name).mkdir()
            for seed in seeds:
                self.write(name, seed, seed)
        self.root, self.next, self.removed = self.base / "db", 200, set[str]()
        type(self).build(self.root, self.base / "photos")
        look_up(self.root, self.base / "queries")

    def write(self, folder: str, number: int, seed: int) -> None:
        (self.base / folder / f"p{number:03d}.jpg").write_bytes(type(self).encoded(seed))

    def living(self) -> list[str]:
        return sorted({path.name for path in (self.base / "photos").iterdir()} - self.removed)

    def update(self, *removed: str, only_delete: bool = False) -> None:
        run_build(
            update_builder(str(self.root), Removal(frozenset(removed)), only_delete=only_delete),
            INLINE,
        )

    @rule(count=st.integers(1, 3), updated=st.booleans())
    def add(self, count: int, updated: bool) -> None:
        for _ in range(count):
            self.write("photos", self.next, self.next)
            self.next += 1
        if updated:
            self.update()

    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        number = int(data.draw(st.sampled_from(self.living()))[1:4])
        self.write("photos", number, self.next)
        self.next += 1
        self.update()

    @precondition(lambda self: len(self.living()) > LEAST)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        (self.base / "photos" / data.draw(st.sampled_from(self.living()))).unlink()
        self.update()

    @precondition(lambda self: len(self.living()) > LEAST)
    @rule(data=st.data(), only_delete=st.booleans())
    def remove(self, data: st.DataObject, only_delete: bool) -> None:
        self.update()  # what was added and not taken in yet has no id that could be removed
        image_id = data.draw(st.sampled_from(self.living()))
        self.removed.add(image_id)
        self.update(image_id, only_delete=only_delete)

    @rule()
    def compact(self) -> None:
        compact_database(str(self.root))

    def teardown(self) -> None:
        self.update()
        assert verify_database(str(self.root)) == []
        for name in self.removed:
            (self.base / "photos" / name).unlink(missing_ok=True)
        type(self).build(self.base / "again", self.base / "photos")
        look_up(self.base / "again", self.base / "queries")
        assert told(self.root) == told(self.base / "again")
        shutil.rmtree(self.base)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_sequence_of_changes_equals_a_new_build(
    build: Build, encoded: Callable[..., bytes]
) -> None:
    machine = type(
        "Machine", (Changes,), {"build": staticmethod(build), "encoded": staticmethod(encoded)}
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=6,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
