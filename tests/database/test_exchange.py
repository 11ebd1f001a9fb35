"""Out to another tool's layout and back: the same ids, the same bytes, the same neighbors."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, RetrievalDatabase, build_neighbors
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.compact import compact_database
from rdm.database.changes.plan import Removal
from rdm.database.exchange.export_database import export_database
from rdm.database.exchange.import_embeddings import NOT_CHECKED, ImportConfig, import_database
from rdm.database.neighbors.contamination import measure_contamination
from rdm.database.verify.verify import verify_database
from rdm.errors import DatabaseError, EncoderMismatchError, SourceError, StorageError
from rdm.report.database_card import database_card
from rdm.sources import CropConfig, QuerySetConfig

FORMATS = [("clip-retrieval", "clip-retrieval"), ("npz", "rdm-npz")]


@pytest.fixture
def changed(tabled: Any, encoded: Callable[..., bytes]) -> Any:
    """A database with deleted patches in the middle, and later parts of an update."""
    (tabled.photos / "p20.jpg").write_bytes(encoded(20))
    tabled.update(Removal(frozenset(["p01.jpg", "p08.jpg"]), frozenset([4])))
    return tabled


def inline() -> ComputeConfig:
    return ComputeConfig(dask="inline")


def imported(source: Path, root: Path, kind: str, encoder: str, **fields: Any) -> RetrievalDatabase:
    config = ImportConfig.model_validate(
        {"format": kind, "folder": str(source), "encoder": encoder, **fields}
    )
    import_database(str(root), config)
    return RetrievalDatabase.open(str(root))


@pytest.mark.parametrize(("to", "kind"), FORMATS)
def test_round_trip_keeps_ids_vectors_and_neighbors(
    changed: Any, tmp_path: Path, tiny_encoder: str, to: Any, kind: str
) -> None:
    database = RetrievalDatabase.open(str(changed.root))
    export_database(database, to, str(tmp_path / "out"))
    again = imported(tmp_path / "out", tmp_path / "again", kind, tiny_encoder)
    ids = database.living_ids()
    assert again.living_ids().tolist() == ids.tolist()
    assert again.embeddings(ids).tobytes() == database.embeddings(ids).tobytes()
    queries = database.embeddings(ids[:7])
    for exact in (True, False):
        before, after = (one.search_vectors(queries, 9, exact=exact) for one in (database, again))
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_array_equal(after[1], before[1])
    assert again.records(ids) == database.records(ids)
    np.testing.assert_array_equal(again.patch_rows(ids)["norm"], database.patch_rows(ids)["norm"])
    assert verify_database(str(tmp_path / "again")) == []


@pytest.mark.parametrize("to", ["clip-retrieval", "datasets", "npz"])
def test_finished_export_is_left_alone_and_another_one_refused(
    built: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]], to: Any
) -> None:
    database = RetrievalDatabase.open(str(built / "db"))
    assert not export_database(database, to, str(tmp_path / "out")).unchanged
    before = contents(tmp_path / "out")
    assert export_database(database, to, str(tmp_path / "out")).unchanged
    assert contents(tmp_path / "out") == before
    other = "npz" if to != "npz" else "datasets"
    with pytest.raises(DatabaseError, match=f"export of version 1 to {to}"):
        export_database(database, other, str(tmp_path / "out"))  # type: ignore[arg-type]
    with pytest.raises(DatabaseError, match="not an export"):
        export_database(database, to, str(built / "photos"))


def test_clip_retrieval_folder_has_a_row_for_each_vector(changed: Any, tmp_path: Path) -> None:
    database = RetrievalDatabase.open(str(changed.root))
    export_database(database, "clip-retrieval", str(tmp_path / "out"))
    vectors = sorted((tmp_path / "out" / "img_emb").glob("*.npy"))
    tables = sorted((tmp_path / "out" / "metadata").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(path) for path in tables])
    assert rows["patch_id"].to_pylist() == database.living_ids().tolist()
    found = np.concatenate([np.load(path) for path in vectors])
    assert found.tobytes() == database.embeddings(database.living_ids()).tobytes()
    assert {"image_path", "url", "caption", "image_id"} <= set(rows.column_names)
    assert [len(np.load(path)) for path in vectors] == [
        pq.read_metadata(path).num_rows for path in tables
    ]


def test_parquet_for_datasets_has_pixels_vectors_and_features(changed: Any, tmp_path: Path) -> None:
    database = RetrievalDatabase.open(str(changed.root))
    export_database(database, "datasets", str(tmp_path / "out"))
    files = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    assert files[0].name == f"train-00000-of-{len(files):05d}.parquet"
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    ids = database.living_ids()
    assert [row["patch_id"] for row in rows] == ids.tolist()
    for row, pixels in zip(rows, database.pixels(ids), strict=True):
        assert Image.open(io.BytesIO(row["image"]["bytes"])).tobytes() == pixels.tobytes()
        assert (
            np.array(row["embedding"], np.float16).tobytes()
            == database.embeddings(row["patch_id"]).tobytes()
        )
    features = pq.read_schema(files[0]).metadata[b"huggingface"].decode()
    assert '"image": {"_type": "Image"}' in features


def test_npz_parts_are_those_of_the_official_release(changed: Any, tmp_path: Path) -> None:
    database = RetrievalDatabase.open(str(changed.root))
    export_database(database, "npz", str(tmp_path / "out"))
    ids = database.living_ids()
    with np.load(tmp_path / "out" / f"{len(ids)}x16-part_1.npz", allow_pickle=False) as part:
        assert set(part.files) == {"embedding", "img_id", "patch_coords"}
        rows = database.patch_rows(ids)
        lengths = np.linalg.norm(part["embedding"], axis=1)
        # raw: what the networks are conditioned on
        np.testing.assert_allclose(lengths, rows["norm"], rtol=2e-3)
        assert part["patch_coords"].tolist() == [
            [row[c] for c in ("x0", "y0", "x1", "y1")] for row in rows.to_pylist()
        ]
        names, numbers = rows["image_id"].to_pylist(), part["img_id"].tolist()
        assert len(set(zip(names, numbers, strict=True))) == len(set(names)) == len(set(numbers))


@pytest.fixture
def clip_folder(built: Path, tmp_path: Path) -> Path:
    """A folder as clip-retrieval leaves it: without the columns that only this project writes."""
    database = RetrievalDatabase.open(str(built / "db"))
    folder = tmp_path / "clip"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    ids = database.living_ids()
    # part 10 comes after part 9
    for number, chosen in zip((8, 9, 10), np.array_split(ids, 3), strict=True):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", database.embeddings(chosen))
        paths = [f"/data/{record.image_id}" for record in database.records(chosen)]
        table = pa.table(
            {"image_path": paths, "caption": [f"caption {i}" for i in chosen.tolist()]}
        )
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def test_folder_of_clip_retrieval_itself_becomes_a_database(
    built: Path, clip_folder: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    database = RetrievalDatabase.open(str(built / "db"))
    again = imported(clip_folder, tmp_path / "again", "clip-retrieval", tiny_encoder)
    ids = database.living_ids()
    assert again.embeddings(ids).tobytes() == database.embeddings(ids).tobytes()
    assert [r.image_id for r in again.records(ids)] == [
        f"/data/{r.image_id}" for r in database.records(ids)
    ]
    assert again.version.num_images == 12
    assert (again.status().encoder_origin, again.status().has_pixels) == (NOT_CHECKED, False)
    assert "import://clip-retrieval" in database_card(again, "")


def add_part(folder: Path, number: int, vectors: np.ndarray, paths: list[str]) -> None:
    """Add a part to a folder of clip-retrieval's layout."""
    np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors)
    table = pa.table({"image_path": pa.array(paths, pa.string())})
    pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


@pytest.mark.parametrize("vectors", [np.empty(0), np.empty((0, 16), np.float16)])
def test_part_without_rows_is_imported_as_no_rows(
    built: Path, clip_folder: Path, tmp_path: Path, tiny_encoder: str, vectors: np.ndarray
) -> None:
    for number in (1, 11):  # the first part and the last
        add_part(clip_folder, number, vectors, [])
    database = RetrievalDatabase.open(str(built / "db"))
    checked = {"photographs": f"folder://{built / 'photos'}", "min_check_similarity": -1}
    again = imported(clip_folder, tmp_path / "again", "clip-retrieval", tiny_encoder, **checked)
    ids = database.living_ids()
    assert len(again.version.parts_of("embeddings")) == 5
    assert again.embeddings(ids).tobytes() == database.embeddings(ids).tobytes()
    queries = database.embeddings(ids[:7])
    np.testing.assert_array_equal(
        again.search_vectors(queries, 9)[0], database.search_vectors(queries, 9)[0]
    )
    assert verify_database(str(tmp_path / "again")) == []


@pytest.mark.parametrize("vectors", [np.empty(0), np.empty((0, 16), np.float16)])
def test_import_of_no_rows_at_all_is_an_error(
    tmp_path: Path, tiny_encoder: str, vectors: np.ndarray
) -> None:
    for name in ("img_emb", "metadata"):
        (tmp_path / "clip" / name).mkdir(parents=True)
    for number in range(2):
        add_part(tmp_path / "clip", number, vectors, [])
    with pytest.raises(DatabaseError, match="nothing to import: no part has a row") as caught:
        imported(tmp_path / "clip", tmp_path / "db", "clip-retrieval", tiny_encoder)
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "db" / "manifest.json").exists()


def test_root_of_an_import_without_rows_takes_a_later_one(
    clip_folder: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    (tmp_path / "none" / "img_emb").mkdir(parents=True)
    (tmp_path / "none" / "metadata").mkdir()
    add_part(tmp_path / "none", 0, np.empty(0), [])
    with pytest.raises(DatabaseError):
        imported(tmp_path / "none", tmp_path / "db", "clip-retrieval", tiny_encoder)
    imported(clip_folder, tmp_path / "db", "clip-retrieval", tiny_encoder)
    assert verify_database(str(tmp_path / "db")) == []


def test_lengths_of_vectors_that_are_not_unit_are_kept(
    clip_folder: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    path = clip_folder / "img_emb" / "img_emb_8.npy"
    unit = np.load(path)
    np.save(path, unit.astype(np.float64) * 5)
    again = imported(clip_folder, tmp_path / "again", "clip-retrieval", tiny_encoder)
    ids = np.arange(len(unit))
    np.testing.assert_allclose(again.patch_rows(ids)["norm"], 5, rtol=1e-3)
    np.testing.assert_allclose(again.embeddings(ids).astype(float), unit.astype(float), atol=1e-3)


def test_pixels_of_an_import_are_an_error_that_says_why(
    clip_folder: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    again = imported(clip_folder, tmp_path / "again", "clip-retrieval", tiny_encoder)
    with pytest.raises(DatabaseError, match="only embeddings were imported"):
        again.pixels(np.array([0]))


def test_refused_export_with_pixels_leaves_the_folder_to_one_without(
    clip_folder: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    database = imported(clip_folder, tmp_path / "db", "clip-retrieval", tiny_encoder)
    with pytest.raises(DatabaseError, match="only embeddings were imported") as caught:
        export_database(database, "datasets", str(tmp_path / "out"))
    assert caught.value.fix == "--no-images"
    assert (
        export_database(database, "datasets", str(tmp_path / "out"), images=False).unchanged
        is False
    )


def test_import_can_be_deleted_from_and_compacted(
    clip_folder: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    root = tmp_path / "again"
    imported(clip_folder, root, "clip-retrieval", tiny_encoder)
    assert run_build(update_builder(str(root)), inline()).unchanged
    run_build(update_builder(str(root), Removal(frozenset(["/data/p03.jpg"]))), inline())
    compact_database(str(root))
    database = RetrievalDatabase.open(str(root))
    assert database.version.num_images == 11
    assert "/data/p03.jpg" not in {
        record.image_id for record in database.records(database.living_ids())
    }
    assert database.status().encoder_origin == NOT_CHECKED
    assert verify_database(str(root)) == []


def test_second_import_does_nothing_and_another_is_refused(
    clip_folder: Path,
    tmp_path: Path,
    tiny_encoder: str,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    root = tmp_path / "again"
    imported(clip_folder, root, "clip-retrieval", tiny_encoder)
    before = contents(root)
    imported(clip_folder, root, "clip-retrieval", tiny_encoder)
    assert contents(root) == before
    np.save(
        clip_folder / "img_emb" / "img_emb_8.npy",
        -np.load(clip_folder / "img_emb" / "img_emb_8.npy"),
    )
    with pytest.raises(DatabaseError, match="something else"):
        imported(clip_folder, root, "clip-retrieval", tiny_encoder)


def test_unfinished_import_of_something_else_leaves_nothing(
    clip_folder: Path,
    tmp_path: Path,
    tiny_encoder: str,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    last = clip_folder / "img_emb" / "img_emb_10.npy"
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    root = tmp_path / "again"
    with pytest.raises(StorageError):
        imported(clip_folder, root, "clip-retrieval", tiny_encoder)
    last.unlink()
    imported(clip_folder, root, "clip-retrieval", tiny_encoder)
    imported(clip_folder, tmp_path / "new", "clip-retrieval", tiny_encoder)
    found, expected = contents(root), contents(tmp_path / "new")
    assert {name for name in found if not name.startswith("_markers")} == {
        name for name in expected if not name.startswith("_markers")
    }


def test_own_photographs_are_excluded_from_an_import_by_image_id_where_that_is_said(
    built: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    export_database(
        RetrievalDatabase.open(str(built / "db")), "clip-retrieval", str(tmp_path / "out")
    )
    root = tmp_path / "again"
    imported(tmp_path / "out", root, "clip-retrieval", tiny_encoder)
    crop = CropConfig(frame_size=40, patch_size=24)
    queries = QuerySetConfig(source=f"folder://{built / 'photos'}", crop=crop)

    def excluded(shared: bool | None) -> int:
        config = NeighborConfig(
            queries=queries, k_stored=5, exclude_self=True, shared_image_ids=shared
        )
        with compute_pool(inline()) as pool:
            return build_neighbors(str(root), "train", config, pool).num_excluded

    with pytest.raises(DatabaseError, match="image id alone"):
        excluded(None)
    assert excluded(True) >= 28
    assert excluded(False) == 0
    assert (
        measure_contamination(RetrievalDatabase.open(str(root)), "train", 0.999).same_photographs
        == 0
    )


def test_declared_encoder_is_checked_on_photographs(
    built: Path, tmp_path: Path, tiny_encoder: str, make_encoder: Callable[[int], str]
) -> None:
    export_database(
        RetrievalDatabase.open(str(built / "db")), "clip-retrieval", str(tmp_path / "out")
    )
    photographs = f"folder://{built / 'photos'}"
    again = imported(
        tmp_path / "out", tmp_path / "a", "clip-retrieval", tiny_encoder, photographs=photographs
    )
    assert again.status().encoder_origin.startswith("declared at import; 28 pictures encoded again")
    with pytest.raises(EncoderMismatchError, match="declared encoder"):
        imported(
            tmp_path / "out",
            tmp_path / "b",
            "clip-retrieval",
            make_encoder(1),
            photographs=photographs,
        )
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "q.jpg").write_bytes((built / "photos" / "p00.jpg").read_bytes())
    strangers = f"folder://{tmp_path / 'strangers'}"
    with pytest.raises(SourceError, match="none of the imported photographs"):
        imported(
            tmp_path / "out", tmp_path / "c", "clip-retrieval", tiny_encoder, photographs=strangers
        )


def test_deleted_patches_never_leave_by_the_back_door(
    changed: Any, tmp_path: Path, tiny_encoder: str
) -> None:
    """The folders of a database still hold what was deleted; importing them would bring it back."""
    with pytest.raises(DatabaseError, match="what was deleted"):
        imported(changed.root, tmp_path / "again", "clip-retrieval", tiny_encoder)
