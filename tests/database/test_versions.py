"""Readers that pinned a version while it is updated again and again, and the index file of each
version."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from rdm.compute import ComputeConfig
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.database.search.approximate import open_index
from rdm.errors import ConcurrentWriterError
from rdm.storage import Folder, IndexDecision, VersionStore

INLINE = ComputeConfig(dask="inline")


def ids_in(path: Path) -> list[int]:
    index = faiss.read_index(str(path))
    lists: Any = faiss.extract_index_ivf(index).invlists
    found = [
        faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n))
        for n in range(lists.nlist)
        if lists.list_size(n)
    ]
    return sorted(np.concatenate(found).tolist())


def test_index_of_a_version_holds_its_living_patches(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    tabled.update(Removal(frozenset(["p01.jpg"])))
    database = RetrievalDatabase.open(str(tabled.root))
    assert ids_in(tabled.root / "index" / "000004" / "knn.index") == database.living_ids().tolist()


def test_index_that_is_built_anew_in_an_update_holds_the_living_patches(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    builder = update_builder(
        str(tabled.root), Removal(frozenset(["p01.jpg"])), overrides=["index.seed=7"]
    )
    result = run_build(builder, INLINE)
    database = RetrievalDatabase.open(str(tabled.root))
    assert result.index_decision == IndexDecision(
        action="built", reason="its settings were changed"
    )
    assert ids_in(tabled.root / "index" / "000004" / "knn.index") == database.living_ids().tolist()


def test_tools_of_clip_retrieval_find_the_newest_index(tabled: Any) -> None:
    tabled.update(Removal(frozenset(["p01.jpg"])))
    for name in ("knn.index", "index_infos.json"):
        published, own = (tabled.root / "index" / place / name for place in ("", "000004"))
        assert published.read_bytes() == own.read_bytes()


def test_small_change_extends_the_index_and_the_version_says_so(tabled: Any) -> None:
    result = tabled.update(Removal(frozenset(["p01.jpg"])))
    assert result.index_decision.action == "extended"
    assert RetrievalDatabase.open(str(tabled.root)).version.index.decision == result.index_decision


def test_growth_over_the_factor_builds_the_index_anew(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    for number in range(20, 36):
        (tabled.photos / f"p{number}.jpg").write_bytes(encoded(number))
    decision = tabled.update().index_decision
    assert decision.action == "built"
    assert decision.reason.startswith("it was built for ")


def test_lost_index_is_built_anew(tabled: Any) -> None:
    (tabled.root / "index" / "000001" / "knn.index").unlink()
    decision = tabled.update(Removal(frozenset(["p01.jpg"]))).index_decision
    assert decision == IndexDecision(action="built", reason="the parent version's cannot be read")


def test_update_without_a_new_or_deleted_patch_keeps_the_index(tabled: Any) -> None:
    (tabled.photos / "notes.txt").write_text("x")
    tabled.update()
    version = RetrievalDatabase.open(str(tabled.root)).version
    assert (version.number, version.parts_of("index")[0].path) == (4, "index/000001/knn.index")


def test_index_files_of_the_newest_versions_alone_are_kept(tabled: Any) -> None:
    for number in range(4):
        tabled.update(Removal(frozenset([f"p{number:02d}.jpg"])))
    assert [name for name in Folder(tabled.root).names("index") if name.isdigit()] == [
        "000005",
        "000006",
        "000007",
    ]


def test_version_whose_index_was_dropped_is_searched_exactly_with_a_warning(
    tabled: Any, caplog: pytest.LogCaptureFixture
) -> None:
    queries = np.asarray(RetrievalDatabase.open(str(tabled.root)).parts[0][1])
    for number in range(4):
        tabled.update(Removal(frozenset([f"p{number:02d}.jpg"])))
    old = RetrievalDatabase.open(str(tabled.root), version=3)
    with caplog.at_level(logging.WARNING, "rdm"):
        found = old.search_vectors(queries, 6)
    for array, expected in zip(found, old.search_vectors(queries, 6, exact=True), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert "version 3 has no index any more" in caplog.text


@pytest.mark.slow
def test_readers_see_their_version_throughout_fifty_updates(
    tabled: Any, encoded: Callable[..., bytes]
) -> None:
    queries = np.asarray(RetrievalDatabase.open(str(tabled.root)).parts[0][1])
    readers: list[tuple[RetrievalDatabase, list[np.ndarray]]] = []

    def answers(reader: RetrievalDatabase) -> list[np.ndarray]:
        found = [reader.search_vectors(queries, 5, exact=exact) for exact in (True, False)]
        return [array for pair in found for array in pair]

    for number in range(50):
        database = RetrievalDatabase.open(str(tabled.root))
        readers.append((database, answers(database)))
        if number % 2:
            (tabled.photos / f"q{number - 1}.jpg").unlink()
        else:
            (tabled.photos / f"q{number}.jpg").write_bytes(encoded(1000 + number))
        tabled.update()
        early = RetrievalDatabase.open(
            str(tabled.root), version=readers[number // 2][0].version.number
        )
        for reader, expected in (
            readers[0],
            readers[number // 2],
            (early, readers[number // 2][1]),
        ):
            assert all(
                np.array_equal(array, other)
                for array, other in zip(answers(reader), expected, strict=True)
            )
    assert VersionStore(Folder(tabled.root)).require().number == 53


def test_reader_that_opens_the_database_during_updates_sees_exactly_one_version(
    tabled: Any,
) -> None:
    queries = np.asarray(RetrievalDatabase.open(str(tabled.root)).parts[0][1])
    found: list[tuple[int, bytes, bytes]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            database = RetrievalDatabase.open(str(tabled.root))
            ids, similarities = database.search_vectors(queries, 5)
            table = NeighborTable(database.folder, "train", database.version).all_ids
            found.append(
                (database.version.number, ids.tobytes() + similarities.tobytes(), table.tobytes())
            )

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(4):
            tabled.update(Removal(frozenset([f"p{number:02d}.jpg"])))
        done.set()
        reading.result()
    assert len({number for number, _, _ in found}) > 1
    for number, answer, table in found:
        database = RetrievalDatabase.open(str(tabled.root), version=number)
        assert answer == b"".join(
            array.tobytes() for array in database.search_vectors(queries, 5, exact=True)
        )
        assert table == NeighborTable(database.folder, "train", database.version).all_ids.tobytes()


def test_second_writer_is_refused_while_one_updates(tabled: Any) -> None:
    with VersionStore(Folder(tabled.root)).writer(), pytest.raises(ConcurrentWriterError):
        tabled.update(Removal(frozenset(["p01.jpg"])))


def test_opened_index_searches_as_its_infos_say(tabled: Any) -> None:
    index = faiss.extract_index_ivf(open_index(Folder(tabled.root), "index/000001"))
    infos = Folder(tabled.root).read_json("index/000001/index_infos.json")
    assert infos["index_param"] == f"nprobe={index.nprobe}"
