"""Neighbor tables through updates of a real database: they stay those of a new table, in every
version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.changes.plan import Removal
from rdm.database.neighbors.lookup import drop_neighbors
from rdm.database.verify.verify import verify_database
from rdm.errors import DatabaseError, StorageError
from rdm.sampling.retrieval.proposal import Proposal
from rdm.sampling.retrieval.queries import query_set_proposal
from rdm.storage import Folder, VersionStore


def change(tabled: Any, encoded: Callable[..., bytes]) -> None:
    """Add two photographs, one of them like a query, replace one, lose one, and remove one."""
    (tabled.photos / "p20.jpg").write_bytes(encoded(103))
    (tabled.photos / "p21.jpg").write_bytes(encoded(21))
    (tabled.photos / "p03.jpg").write_bytes(encoded(33))
    (tabled.photos / "p07.jpg").unlink()
    tabled.update(Removal(frozenset(["p01.jpg"])))


def files_of(root: Path, name: str) -> dict[str, bytes]:
    """Return the bytes of a table's shards and query embeddings by file name."""
    table = NeighborTable(Folder(root), name)
    paths = [path for stem in table.info.stems for path in table.paths(stem)]
    return {Path(path).name: (root / path).read_bytes() for path in paths}


@pytest.mark.parametrize(("name", "k", "exact"), [("train", 5, True), ("fast", 3, False)])
def test_table_after_an_update_is_a_new_one_byte_for_byte(
    tabled: Any, encoded: Callable[..., bytes], name: str, k: int, exact: bool
) -> None:
    change(tabled, encoded)
    tabled.table("again", k, exact=exact)
    assert files_of(tabled.root, name) == files_of(tabled.root, "again")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("fields", [{"exclude_self": True}, {"exclude_above": 0.98}])
def test_table_with_exclusions_after_an_update_is_a_new_one_byte_for_byte(
    tabled: Any, encoded: Callable[..., bytes], fields: dict[str, Any], exact: bool
) -> None:
    """The update adds the very photograph of a query."""
    tabled.table("train", 5, exact=exact, **fields)
    before = NeighborTable(Folder(tabled.root), "train").info.num_excluded
    change(tabled, encoded)
    tabled.table("again", 5, exact=exact, **fields)
    assert files_of(tabled.root, "train") == files_of(tabled.root, "again")
    repaired, again = (NeighborTable(Folder(tabled.root), name).info for name in ("train", "again"))
    assert repaired.model_copy(update={"name": "again"}) == again
    assert repaired.num_excluded != before


def test_update_that_would_leave_a_crop_too_few_neighbors_is_refused(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    tabled.table("train", 5, exact=True, exclude_self=True)
    for number in range(12):
        (tabled.photos / f"p{number:02d}.jpg").unlink()
    for number in range(3):
        (tabled.photos / f"p5{number}.jpg").write_bytes(encoded(103))
    with pytest.raises(DatabaseError, match=r"'q03\.jpg/0' has 0"):
        tabled.update(overrides=["max_vanished_share=1"])


def test_facts_of_a_table_after_an_update_are_those_of_a_new_one(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    change(tabled, encoded)
    tabled.table("again", 5, exact=True)
    repaired, again = (NeighborTable(Folder(tabled.root), name).info for name in ("train", "again"))
    assert repaired.model_copy(update={"name": "again"}) == again


def test_table_belongs_to_the_version_that_the_update_makes(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    change(tabled, encoded)
    assert NeighborTable(Folder(tabled.root), "train").info.database_version == 4
    assert verify_database(str(tabled.root)) == []


def test_reader_of_the_older_version_goes_on_reading_its_table(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    old = NeighborTable(Folder(tabled.root), "train")
    before = [old.shard(stem) for stem in old.info.stems]
    change(tabled, encoded)
    pinned = NeighborTable(
        Folder(tabled.root), "train", VersionStore(Folder(tabled.root)).require(3)
    )
    for table in (old, pinned):
        for stem, (keys, ids, similarities) in zip(table.info.stems, before, strict=True):
            found = table.shard(stem)
            assert found[0] == keys
            np.testing.assert_array_equal(found[1], ids)
            np.testing.assert_array_equal(found[2], similarities)


def test_deleted_patch_is_in_no_table_and_never_proposed(tabled: Any) -> None:
    folder = Folder(tabled.root)
    nearest = int(NeighborTable(folder, "train").all_ids[0, 0])
    image = RetrievalDatabase.open(str(tabled.root)).records(np.array([nearest]))[0].image_id
    tabled.update(Removal(frozenset([image])))
    database = RetrievalDatabase.open(str(tabled.root))
    for name in ("train", "fast"):
        assert not np.isin(NeighborTable(folder, name).all_ids, database.tombstones).any()
    proposal = query_set_proposal(database, NeighborTable(folder, "train").info.queries_digest)
    assert not np.isin(proposal.ids, database.tombstones).any()


def test_proposal_counts_are_those_of_the_repaired_table(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    digest = NeighborTable(Folder(tabled.root), "train").info.queries_digest
    change(tabled, encoded)
    tabled.table("fast", 5, exact=True)  # now both tables of this query set are exact
    database = RetrievalDatabase.open(str(tabled.root))
    queries = np.concatenate(
        [
            np.asarray(NeighborTable(database.folder, "train").embeddings(stem))
            for stem in ("00000", "00001", "00002")
        ]
    )
    expected = Proposal.from_neighbors(database.search_vectors(queries, 5, exact=True)[0])
    found = query_set_proposal(database, digest)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_proposal_of_a_pinned_reader_is_that_of_its_version(tabled: Any) -> None:
    database = RetrievalDatabase.open(str(tabled.root))
    digest = NeighborTable(database.folder, "train").info.queries_digest
    before = query_set_proposal(database, digest)
    tabled.update(Removal(frozenset(["p00.jpg", "p02.jpg", "p04.jpg"])))
    np.testing.assert_array_equal(query_set_proposal(database, digest).ids, before.ids)


def test_shard_without_a_change_is_carried_over(tabled: Any) -> None:
    folder = Folder(tabled.root)
    table = NeighborTable(folder, "train")
    shards = {stem: set(np.unique(table.shard(stem)[1]).tolist()) for stem in table.info.stems}
    lonely = [
        (stem, patch_id)
        for stem, ids in shards.items()
        for patch_id in ids
        if not any(patch_id in other for name, other in shards.items() if name != stem)
    ]
    stem, patch_id = lonely[0]
    result = tabled.update(Removal(patch_ids=frozenset([patch_id])))
    assert result.query_sets["train"].changed_shards == 1
    after = NeighborTable(folder, "train")
    assert [name for name in table.info.stems if after.paths(name) != table.paths(name)] == [stem]


def test_rows_without_a_deleted_neighbor_are_not_looked_up_again(tabled: Any) -> None:
    ids = NeighborTable(Folder(tabled.root), "train").all_ids
    patch_id = int(ids[0, 2])
    result = tabled.update(Removal(patch_ids=frozenset([patch_id])))
    assert result.query_sets["train"].searched_rows == (ids == patch_id).any(axis=1).sum()


ALL_BUT_ONE = Removal(frozenset(f"p{number:02d}.jpg" for number in range(11)))


def test_update_that_would_leave_too_few_patches_for_a_table_says_what_to_do(tabled: Any) -> None:
    tabled.table("fast", 3, exact=False, exclude_above=0.99)
    with pytest.raises(DatabaseError, match="the neighbors of 'fast' are 3 per crop") as caught:
        tabled.update(ALL_BUT_ONE)
    assert f"rdm neighbors build --root {tabled.root} " in caught.value.fix
    assert "--exclude-above 0.99 --set k_stored=2 --set exact=false" in caught.value.fix
    assert f"rdm neighbors drop --root {tabled.root} --name fast" in caught.value.fix
    assert VersionStore(Folder(tabled.root)).require().number == 4


def test_dropped_tables_are_not_in_the_way_of_a_removal(tabled: Any) -> None:
    assert [drop_neighbors(str(tabled.root), name) for name in ("train", "fast")] == [4, 5]
    assert tabled.update(ALL_BUT_ONE).photographs == 1
    assert NeighborTable.names(Folder(tabled.root)) == []
    assert verify_database(str(tabled.root)) == []


def test_reader_of_the_older_version_goes_on_reading_a_dropped_table(tabled: Any) -> None:
    drop_neighbors(str(tabled.root), "train")
    old = RetrievalDatabase.open(str(tabled.root), version=3)
    assert NeighborTable(old.folder, "train", old.version).all_ids.shape[1] == 5


def test_unknown_table_cannot_be_dropped(tabled: Any) -> None:
    with pytest.raises(DatabaseError, match="no neighbors of a query set 'none'") as caught:
        drop_neighbors(str(tabled.root), "none")
    assert "query sets here: fast, train" in caught.value.fix


def test_damaged_description_of_a_table_is_named_though_it_is_json(tabled: Any) -> None:
    folder = Folder(tabled.root)
    (path,) = (
        part.path for part in NeighborTable(folder, "train").parts if part.kind == "queryset"
    )
    (tabled.root / path).write_bytes(
        (tabled.root / path).read_bytes().replace(b'"queries"', b'"queriEs"', 1)
    )
    with pytest.raises(StorageError, match="description of a query set is damaged") as caught:
        NeighborTable(folder, "train")
    assert caught.value.where.endswith(path)
