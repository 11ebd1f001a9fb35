"""Photographs that cannot be had for a passing cause: what is stored stays, and nothing gained is
no version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.building.results import BuildResult
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.sources.kinds.local import LocalSource
from rdm.sources.ledger import Row, unusable_row
from rdm.sources.photographs.filters import FilterConfig
from rdm.storage import Folder, VersionStore


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The causes for which photographs cannot be read, by id."""
    causes: dict[str, str] = {}
    take = LocalSource._take_one

    def fail_or_take(source: LocalSource, entry: Row) -> tuple[Row, bytes]:
        cause = causes.get(entry["image_id"])
        return (unusable_row(entry, cause), b"") if cause else take(source, entry)

    monkeypatch.setattr(LocalSource, "_take_one", fail_or_take)
    return causes


def update(root: Path, **options: Any) -> BuildResult:
    return run_build(update_builder(str(root), **options), ComputeConfig(dask="inline"))


def images_of(root: Path) -> set[str]:
    database = RetrievalDatabase.open(str(root))
    return {row.image_id for row in database.records(database.living_ids())}


def touch(root: Path, name: str = "p03.jpg") -> None:
    os.utime(root.parent / "photos" / name, (1, 1))


ALL = {f"p{number:02d}.jpg" for number in range(12)}


def test_photograph_whose_newer_bytes_cannot_be_had_stays(
    living_root: Path, unavailable: dict[str, str]
) -> None:
    touch(living_root)
    unavailable["p03.jpg"] = "timed out"
    assert update(living_root).failed == 1
    assert images_of(living_root) == ALL
    assert RetrievalDatabase.open(str(living_root)).version.tombstones == []
    assert verify_database(str(living_root)) == []


def test_newer_bytes_are_asked_for_by_the_next_update(
    living_root: Path, unavailable: dict[str, str], encoded: Any
) -> None:
    (living_root.parent / "photos" / "p03.jpg").write_bytes(encoded(33, size=(96, 80)))
    unavailable["p03.jpg"] = "timed out"
    update(living_root)
    unavailable.clear()
    assert update(living_root).version == 3
    database = RetrievalDatabase.open(str(living_root))
    newest = max(
        row.patch_id for row in database.records(database.living_ids()) if row.image_id == "p03.jpg"
    )
    assert database.photograph(newest).size == (96, 80)


def test_photograph_whose_newer_bytes_are_broken_goes(
    living_root: Path, unavailable: dict[str, str]
) -> None:
    touch(living_root)
    unavailable["p03.jpg"] = "not a picture"
    update(living_root)
    assert images_of(living_root) == ALL - {"p03.jpg"}


def test_second_attempt_that_fails_commits_nothing(
    living_root: Path, unavailable: dict[str, str], contents: Any
) -> None:
    touch(living_root)
    unavailable["p03.jpg"] = "timed out"
    update(living_root)
    before = contents(living_root / "images")
    result = update(living_root)
    assert (result.unchanged, result.version, result.failed) == (True, 2, 1)
    assert contents(living_root / "images") == before


def test_photograph_that_was_kept_can_be_removed(
    living_root: Path, unavailable: dict[str, str]
) -> None:
    touch(living_root)
    unavailable["p03.jpg"] = "timed out"
    update(living_root)
    update(living_root, removal=Removal(where="image_id == 'p03.jpg' and width > 0"))
    assert images_of(living_root) == ALL - {"p03.jpg"}


def test_photograph_that_was_kept_goes_when_it_vanishes(
    living_root: Path, unavailable: dict[str, str]
) -> None:
    touch(living_root)
    unavailable["p03.jpg"] = "timed out"
    update(living_root)
    (living_root.parent / "photos" / "p03.jpg").unlink()
    update(living_root)
    assert images_of(living_root) == ALL - {"p03.jpg"}


def test_kept_photograph_keeps_near_duplicates_out(
    root: Path, build: Any, unavailable: dict[str, str], encoded: Any
) -> None:
    (root.parent / "photos" / "p20.jpg").write_bytes(encoded(3))
    build(root, root.parent / "photos", filters=FilterConfig(near_duplicate_bits=4))
    touch(root)
    unavailable["p03.jpg"] = "timed out"
    update(root)
    assert images_of(root) == ALL


def test_retry_that_gains_nothing_commits_nothing(
    living_root: Path, unavailable: dict[str, str], encoded: Any
) -> None:
    (living_root.parent / "photos" / "p20.jpg").write_bytes(encoded(20))
    unavailable["p20.jpg"] = "timed out"
    update(living_root)
    unavailable["p20.jpg"] = "server error: 503"
    result = update(living_root, retry_failed=True)
    assert (result.unchanged, result.version) == (True, 2)
    assert VersionStore(Folder(living_root)).numbers() == [1, 2]


def test_retry_that_learns_of_another_cause_or_succeeds_is_a_version(
    living_root: Path, unavailable: dict[str, str], encoded: Any
) -> None:
    for name in ("p20.jpg", "p21.jpg"):
        (living_root.parent / "photos" / name).write_bytes(encoded(int(name[1:3])))
        unavailable[name] = "timed out"
    update(living_root)
    unavailable["p20.jpg"] = "not found: 404"
    assert update(living_root, retry_failed=True).version == 3
    unavailable.clear()
    assert update(living_root, retry_failed=True).version == 4
    assert images_of(living_root) == ALL | {"p21.jpg"}


def test_compaction_removes_what_tells_of_a_removed_photograph_that_failed(
    living_root: Path, unavailable: dict[str, str], contents: Any
) -> None:
    (living_root.parent / "photos" / "secret-name.jpg").write_bytes(b"words")
    update(living_root)
    update(living_root, removal=Removal(frozenset(["secret-name.jpg"])))
    compact_database(str(living_root))
    version = VersionStore(Folder(living_root)).require()
    rows = [
        row
        for part in version.parts_of("ledger")
        for row in Folder(living_root).read_table(part.path).to_pylist()
    ]
    row = next(row for row in rows if row["image_id"] == "secret-name.jpg")
    assert (row["status"], row["url"], row["etag"]) == ("deleted", None, "")
