"""Photographs that cannot be had for a passing cause: what is stored stays, and nothing gained is
no version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.building.results import BuildResult
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.sources.photographs.filters import FilterConfig
from rdm.storage import Folder, VersionStore


def photograph(root: Path, name: str = "p03.jpg") -> Path:
    """Return where the source of a database has a photograph."""
    return root.parent / "photos" / name


def withdraw(path: Path) -> None:
    """Put a link to itself in a photograph's place: the file is listed, but cannot be read now."""
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.name)


def give_back(path: Path) -> None:
    """Put a photograph back that was withdrawn."""
    path.unlink()
    (path.parent.parent / path.name).rename(path)


def update(root: Path, **options: Any) -> BuildResult:
    return run_build(update_builder(str(root), **options), ComputeConfig(dask="inline"))


def images_of(root: Path) -> set[str]:
    database = RetrievalDatabase.open(str(root))
    return {row.image_id for row in database.records(database.living_ids())}


ALL = {f"p{number:02d}.jpg" for number in range(12)}


def test_photograph_whose_newer_bytes_cannot_be_had_stays(living_root: Path) -> None:
    withdraw(photograph(living_root))
    assert update(living_root).failed == 1
    assert images_of(living_root) == ALL
    assert RetrievalDatabase.open(str(living_root)).version.tombstones == []
    assert verify_database(str(living_root)) == []


def test_newer_bytes_are_asked_for_by_the_next_update(living_root: Path, encoded: Any) -> None:
    photograph(living_root).write_bytes(encoded(33, size=(96, 80)))
    withdraw(photograph(living_root))
    update(living_root)
    give_back(photograph(living_root))
    assert update(living_root).version == 3
    database = RetrievalDatabase.open(str(living_root))
    newest = max(
        row.patch_id for row in database.records(database.living_ids()) if row.image_id == "p03.jpg"
    )
    assert database.photograph(newest).size == (96, 80)


def test_photograph_whose_newer_bytes_are_broken_goes(living_root: Path) -> None:
    photograph(living_root).write_bytes(b"words")
    update(living_root)
    assert images_of(living_root) == ALL - {"p03.jpg"}


def test_second_attempt_that_fails_commits_nothing(living_root: Path, contents: Any) -> None:
    withdraw(photograph(living_root))
    update(living_root)
    before = contents(living_root / "images")
    result = update(living_root)
    assert (result.unchanged, result.version, result.failed) == (True, 2, 1)
    assert contents(living_root / "images") == before


def test_photograph_that_was_kept_can_be_removed(living_root: Path) -> None:
    withdraw(photograph(living_root))
    update(living_root)
    update(living_root, removal=Removal(where="image_id == 'p03.jpg' and width > 0"))
    assert images_of(living_root) == ALL - {"p03.jpg"}


def test_photograph_that_was_kept_goes_when_it_vanishes(living_root: Path) -> None:
    withdraw(photograph(living_root))
    update(living_root)
    photograph(living_root).unlink()
    update(living_root)
    assert images_of(living_root) == ALL - {"p03.jpg"}


def test_kept_photograph_keeps_near_duplicates_out(root: Path, build: Any, encoded: Any) -> None:
    photograph(root, "p20.jpg").write_bytes(encoded(3))
    build(root, root.parent / "photos", filters=FilterConfig(near_duplicate_bits=4))
    withdraw(photograph(root))
    update(root)
    assert images_of(root) == ALL


def test_retry_that_gains_nothing_commits_nothing(living_root: Path, encoded: Any) -> None:
    path = photograph(living_root, "p20.jpg")
    path.write_bytes(encoded(20))
    withdraw(path)
    update(living_root)
    path.unlink()
    path.symlink_to("nowhere")  # another cause that may pass
    result = update(living_root, retry_failed=True)
    assert (result.unchanged, result.version) == (True, 2)
    assert VersionStore(Folder(living_root)).numbers() == [1, 2]


def test_retry_that_learns_of_another_cause_or_succeeds_is_a_version(
    living_root: Path, encoded: Any
) -> None:
    for name in ("p20.jpg", "p21.jpg"):
        photograph(living_root, name).write_bytes(encoded(int(name[1:3])))
        withdraw(photograph(living_root, name))
    update(living_root)
    photograph(living_root, "p20.jpg").unlink()
    photograph(living_root, "p20.jpg").write_bytes(b"words")
    assert update(living_root, retry_failed=True).version == 3
    give_back(photograph(living_root, "p21.jpg"))
    assert update(living_root, retry_failed=True).version == 4
    assert images_of(living_root) == ALL | {"p21.jpg"}


def test_compaction_removes_what_tells_of_a_removed_photograph_that_failed(
    living_root: Path, contents: Any
) -> None:
    photograph(living_root, "secret-name.jpg").write_bytes(b"words")
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
