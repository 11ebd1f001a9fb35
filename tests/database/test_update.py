from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, RetrievalDatabase, build_neighbors
from rdm.database.building.jobs import run_build, update_builder, update_plan
from rdm.database.building.results import BuildResult, PlanFacts
from rdm.database.changes.plan import Removal
from rdm.database.verify.verify import verify_database
from rdm.errors import DatabaseError, FailureBudgetError, StorageError
from rdm.sources import CropConfig, QuerySetConfig
from rdm.sources.photographs.filters import FilterConfig

INLINE = ComputeConfig(dask="inline")


def update(root: Path, *deleted: str) -> BuildResult:
    return run_build(update_builder(str(root), Removal(frozenset(deleted))), INLINE)


def plan(root: Path, *deleted: str) -> PlanFacts:
    return update_plan(update_builder(str(root), Removal(frozenset(deleted))))


def images_of(root: Path) -> set[str]:
    database = RetrievalDatabase.open(str(root))
    return set(database.patch_rows(database.living_ids())["image_id"].to_pylist())


def found_everywhere(root: Path) -> set[str]:
    """Return the images of everything that searches of either kind find, asked for as much as there
    is."""
    database = RetrievalDatabase.open(str(root))
    vectors = np.concatenate([np.asarray(vectors) for _, vectors in database.parts])
    k = database.version.num_live_patches
    found = [database.search_vectors(vectors, k, exact=exact)[0] for exact in (True, False)]
    return set(database.patch_rows(np.concatenate(found).ravel())["image_id"].to_pylist())


def add_neighbors(root: Path, photos: Path) -> None:
    queries = QuerySetConfig(
        source=f"folder://{photos}", crop=CropConfig(frame_size=40, patch_size=24)
    )
    with compute_pool(INLINE) as pool:
        build_neighbors(str(root), "train", NeighborConfig(queries=queries, k_stored=5), pool)


def test_unchanged_source_needs_nothing(living_root: Path) -> None:
    assert plan(living_root) == PlanFacts(
        changed=False, photographs=12, new=0, gone=0, gone_patches=0
    )
    assert update(living_root).unchanged


def test_unchanged_source_is_known_by_its_fingerprint_and_no_ledger_is_read(
    living_root: Path,
) -> None:
    for path in (living_root / "images").iterdir():
        path.unlink()
    assert not plan(living_root).changed
    assert update(living_root).unchanged


def test_few_broken_photographs_do_not_stop_an_update(living_root: Path, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / "photos" / f"x{number}.jpg").write_bytes(b"no picture")
    (tmp_path / "photos" / "p11.jpg").unlink()
    result = update(living_root, "p00.jpg")
    assert (result.failed, result.photographs) == (10, 10)


def test_many_broken_photographs_stop_an_update(living_root: Path, tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / "photos" / f"x{number:02d}.jpg").write_bytes(b"no picture")
    with pytest.raises(
        FailureBudgetError, match="only 0 of 11 pictures are usable: 11 not a picture"
    ):
        update(living_root)
    assert RetrievalDatabase.open(str(living_root)).version.number == 1


def test_new_photographs_get_new_parts_and_old_ones_stay(
    living_root: Path,
    tmp_path: Path,
    encoded: Callable[..., bytes],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    before = contents(living_root)
    for number in (20, 21):
        (tmp_path / "photos" / f"p{number}.jpg").write_bytes(encoded(number))
    assert plan(living_root).new == 2
    assert update(living_root).photographs == 14
    after = contents(living_root)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"manifest.json", "image.index", "index/knn.index", "index/index_infos.json"}
    assert images_of(living_root) == {f"p{number:02d}.jpg" for number in (*range(12), 20, 21)}
    assert verify_database(str(living_root)) == []


def test_vanished_photographs_are_found_no_more(living_root: Path, tmp_path: Path) -> None:
    for number in (0, 7):
        (tmp_path / "photos" / f"p{number:02d}.jpg").unlink()
    assert plan(living_root).gone == 2
    assert update(living_root).photographs == 10
    kept = {f"p{number:02d}.jpg" for number in range(12)} - {"p00.jpg", "p07.jpg"}
    assert images_of(living_root) == found_everywhere(living_root) == kept
    assert verify_database(str(living_root)) == []


def test_patch_ids_are_never_used_again(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    before = RetrievalDatabase.open(str(living_root)).version.next_patch_id
    (tmp_path / "photos" / "p11.jpg").unlink()
    (tmp_path / "photos" / "p12.jpg").write_bytes(encoded(12))
    update(living_root)
    database = RetrievalDatabase.open(str(living_root))
    new = [
        number
        for number, name in zip(
            database.living_ids(),
            database.patch_rows(database.living_ids())["image_id"].to_pylist(),
            strict=True,
        )
        if name == "p12.jpg"
    ]
    assert min(new) == before


def test_replaced_photograph_gets_new_patches(
    living_root: Path,
    tmp_path: Path,
    encoded: Callable[..., bytes],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    before = RetrievalDatabase.open(str(living_root)).version
    (tmp_path / "photos" / "p03.jpg").write_bytes(encoded(33))
    update(living_root)
    database = RetrievalDatabase.open(str(living_root))
    rows = database.patch_rows(database.living_ids()).to_pylist()
    assert all(
        row["patch_id"] >= before.next_patch_id for row in rows if row["image_id"] == "p03.jpg"
    )
    assert images_of(living_root) == {f"p{number:02d}.jpg" for number in range(12)}
    assert not plan(living_root).changed


def test_photograph_that_comes_back_is_in_again(living_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "photos" / "p05.jpg"
    path.rename(tmp_path / "aside.jpg")
    update(living_root)
    assert "p05.jpg" not in images_of(living_root)
    (tmp_path / "aside.jpg").rename(path)
    update(living_root)
    assert images_of(living_root) == {f"p{number:02d}.jpg" for number in range(12)}


def test_deleted_images_stay_out_although_the_source_has_them(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    update(living_root, "p02.jpg", "p09.jpg")
    assert not {"p02.jpg", "p09.jpg"} & found_everywhere(living_root)
    assert not plan(living_root).changed
    assert update(living_root).unchanged
    (tmp_path / "photos" / "p20.jpg").write_bytes(encoded(20))
    update(living_root)
    assert not {"p02.jpg", "p09.jpg"} & found_everywhere(living_root)
    assert RetrievalDatabase.open(str(living_root)).version.deleted_image_ids == [
        "p02.jpg",
        "p09.jpg",
    ]


def test_deletion_of_an_image_that_vanished_before_is_remembered(
    living_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "photos" / "p05.jpg"
    path.rename(tmp_path / "aside.jpg")
    update(living_root)
    update(living_root, "p05.jpg")
    (tmp_path / "aside.jpg").rename(path)
    assert not plan(living_root).changed
    assert "p05.jpg" not in images_of(living_root)


def test_unknown_image_cannot_be_deleted(living_root: Path) -> None:
    with pytest.raises(DatabaseError, match=r"has no image q\.jpg"):
        update_builder(str(living_root), Removal(frozenset(["p01.jpg", "q.jpg"])))


def test_last_photograph_cannot_be_deleted(living_root: Path) -> None:
    with pytest.raises(DatabaseError, match="no patch would be left"):
        update(living_root, *(f"p{number:02d}.jpg" for number in range(12)))
    assert images_of(living_root) == {f"p{number:02d}.jpg" for number in range(12)}


def test_file_that_is_no_picture_does_not_stop_updates(living_root: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "notes.txt").write_text("x")
    assert update(living_root).photographs == 12
    assert not plan(living_root).changed
    assert found_everywhere(living_root) == images_of(living_root)


def test_broken_photograph_is_not_tried_again_until_it_changes(
    buildable_root: Path, tmp_path: Path, build: Callable[..., Any], encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "photos" / "q.jpg").write_bytes(b"words")
    assert build(buildable_root, tmp_path / "photos", min_success_rate=0).failed == 1
    assert not plan(buildable_root).changed
    (tmp_path / "photos" / "q.jpg").write_bytes(encoded(50))
    assert plan(buildable_root).new == 1
    update(buildable_root)
    assert "q.jpg" in images_of(buildable_root)


def test_root_that_is_no_database_cannot_be_updated(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="not a retrieval database"):
        update_builder(str(tmp_path))


def test_reader_of_the_old_version_is_not_disturbed(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    reader = RetrievalDatabase.open(str(living_root))
    queries = np.asarray(reader.parts[0][1][:4])
    before = RetrievalDatabase.open(str(living_root)).search_vectors(queries, 10)
    for number in range(20, 30):
        (tmp_path / "photos" / f"p{number}.jpg").write_bytes(encoded(number % 12))
    update(living_root, "p01.jpg")
    for old in (reader, RetrievalDatabase.open(str(living_root), version=1)):
        for exact in (True, False):
            ids, similarities = old.search_vectors(queries, 10, exact=exact)
            np.testing.assert_array_equal(ids, before[0])
            np.testing.assert_array_equal(similarities, before[1])


def test_update_that_fails_leaves_the_old_version(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    (tmp_path / "photos" / "p20.jpg").write_bytes(encoded(20))
    (living_root / "img_emb" / "img_emb_0001.npy").write_bytes(b"")
    with pytest.raises(StorageError):
        update(living_root)
    assert RetrievalDatabase.open(str(living_root)).version.number == 1


def break_photographs(folder: Path, names: Sequence[str]) -> None:
    """Put links to nothing in place of photographs, as a disk that fails would: they cannot be read
    for now."""
    for name in names:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "nowhere")


def test_photographs_that_wait_for_their_newer_bytes_stop_no_later_update(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    for names in (["p00.jpg", "p01.jpg"], ["p02.jpg", "p03.jpg"]):
        break_photographs(tmp_path / "photos", names)
        run_build(update_builder(str(living_root), overrides=["tolerated_failures=2"]), INLINE)
    (tmp_path / "photos" / "p20.jpg").write_bytes(encoded(20))
    assert update(living_root).causes == {"success": 1, "cannot be read": 4}


def test_look_alike_of_a_photograph_that_waits_is_stored_once(
    tmp_path: Path, build: Callable[..., BuildResult], encoded: Callable[..., bytes]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        (photos / f"p{number}.jpg").write_bytes(encoded(number))
    with Image.open(photos / "p0.jpg") as image:
        image.save(photos / "q.jpg", quality=70)
    build(tmp_path / "db", photos, filters=FilterConfig(near_duplicate_bits=4))
    break_photographs(photos, ["p0.jpg"])
    assert not update(tmp_path / "db").unchanged
    assert update(tmp_path / "db").unchanged
