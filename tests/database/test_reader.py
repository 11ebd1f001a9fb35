from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.database import RetrievalDatabase
from rdm.encoders import load_encoder
from rdm.errors import DatabaseError, EncoderMismatchError, StorageError, UsageError


def all_vectors(database: RetrievalDatabase) -> np.ndarray:
    return np.concatenate([np.asarray(vectors) for _, vectors in database.parts])


def test_stored_vector_finds_itself_first(database: RetrievalDatabase) -> None:
    ids, similarities = database.search_vectors(all_vectors(database), 3, exact=True)
    np.testing.assert_array_equal(ids[:, 0], database.living_ids())
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_index_and_exact_search_agree_on_a_small_database(database: RetrievalDatabase) -> None:
    for first, second in zip(
        *(
            database.search_vectors(all_vectors(database), 4, exact=exact)
            for exact in (True, False)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)


def test_queries_are_rounded_as_stored_vectors_are(database: RetrievalDatabase) -> None:
    queries = all_vectors(database)[:3]
    wide = database.search_vectors(queries.astype(np.float64), 5, exact=True)
    half = database.search_vectors(queries, 5, exact=True)
    assert wide[1].tobytes() == half[1].tobytes()


def test_more_neighbors_than_patches_is_an_error(database: RetrievalDatabase) -> None:
    with pytest.raises(DatabaseError, match="k = 1000"):
        database.search_vectors(all_vectors(database)[:1], 1000)


@pytest.mark.parametrize("k", [0, -2])
def test_no_neighbors_at_all_are_a_usage_error(database: RetrievalDatabase, k: int) -> None:
    with pytest.raises(UsageError, match="is no number of neighbors"):
        database.search_vectors(all_vectors(database)[:1], k)


def test_queries_of_another_dimension_are_an_error(database: RetrievalDatabase) -> None:
    with pytest.raises(DatabaseError, match="5 dimensions, the database 16"):
        database.search_vectors(np.ones((1, 5)), 1)


def test_embeddings_are_looked_up_by_id_in_any_shape_and_order(database: RetrievalDatabase) -> None:
    vectors = all_vectors(database)
    ids = np.random.default_rng(0).integers(0, len(vectors), (4, 7))
    np.testing.assert_array_equal(database.embeddings(ids), vectors[ids])
    assert database.embeddings(np.zeros((0, 3), np.int64)).shape == (0, 3, 16)


def test_rows_come_in_the_order_of_the_ids(database: RetrievalDatabase) -> None:
    ids = np.array([20, 0, 13, 0, 5])
    assert database.patch_rows(ids)["patch_id"].to_pylist() == ids.tolist()
    assert [record.patch_id for record in database.records(ids)] == ids.tolist()


def test_no_ids_give_no_rows(database: RetrievalDatabase) -> None:
    nothing = np.zeros(0, np.int64)
    assert database.records(nothing) == []
    assert database.pixels(nothing) == []


@pytest.mark.parametrize("patch_id", [-1, 10_000])
def test_id_that_was_never_given_out_is_an_error(
    database: RetrievalDatabase, patch_id: int
) -> None:
    for lookup in (database.embeddings, database.patch_rows, database.records, database.pixels):
        with pytest.raises(DatabaseError, match="patch ids run from 0"):
            lookup(np.array([patch_id]))


def test_pixels_are_cut_from_the_photographs(database: RetrievalDatabase, built: Path) -> None:
    ids = np.array([12, 3, 4, 3])
    for record, pixels in zip(database.records(ids), database.pixels(ids), strict=True):
        with Image.open(built / "photos" / record.image_id) as image:
            np.testing.assert_array_equal(np.asarray(pixels), np.asarray(image.crop(record.box)))


def test_record_has_the_digest_of_its_photograph(database: RetrievalDatabase, built: Path) -> None:
    for record in database.records(np.array([12, 3])):
        data = (built / "photos" / record.image_id).read_bytes()
        assert record.sha256 == hashlib.sha256(data).hexdigest()


def test_photograph_is_the_whole_one(database: RetrievalDatabase, built: Path) -> None:
    with Image.open(built / "photos" / database.records(np.array([7]))[0].image_id) as image:
        np.testing.assert_array_equal(np.asarray(database.photograph(7)), np.asarray(image))


def test_embedding_is_that_of_the_pixels(database: RetrievalDatabase) -> None:
    ids = np.arange(5)
    encoder = database.encoder
    raw = encoder.encode_images(
        np.stack([encoder.preprocess(image) for image in database.pixels(ids)])
    )
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, database.embeddings(ids), atol=2e-3)
    norms = database.patch_rows(ids)["norm"].to_numpy()
    np.testing.assert_allclose(norms, np.linalg.norm(raw, axis=1), rtol=1e-4)


def test_status_tells_what_is_there(database: RetrievalDatabase) -> None:
    status = database.status()
    assert (status.version, status.versions, status.photographs, status.deleted_patches) == (
        1,
        [1],
        12,
        0,
    )
    assert status.patches == database.version.next_patch_id


def test_other_encoder_is_named_in_the_error(
    database: RetrievalDatabase, make_encoder: Callable[[int], str]
) -> None:
    with pytest.raises(EncoderMismatchError, match="weights_digest differ"):
        database.check_encoder(load_encoder(make_encoder(1)))


def test_folder_without_a_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="not a retrieval database"):
        RetrievalDatabase.open(str(tmp_path / "none"))


@pytest.fixture
def damaged(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built / "db", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "name",
    [
        "img_emb/img_emb_0000.npy",
        "patches/patches_0000.parquet",
        "metadata/metadata_0000.parquet",
        "images/00000.tar",
        "images/00000.parquet",
        "index/000001/knn.index",
    ],
)
@pytest.mark.parametrize("truncated", [True, False], ids=["truncated", "missing"])
def test_missing_or_truncated_part_is_an_error_for_the_user(
    damaged: Path, name: str, truncated: bool
) -> None:
    data = (damaged / name).read_bytes()
    (damaged / name).unlink()
    if truncated:
        (damaged / name).write_bytes(data[: len(data) // 4])
    database = RetrievalDatabase.open(str(damaged))
    with pytest.raises((StorageError, DatabaseError)):  # noqa: PT012
        ids, _ = database.search_vectors(np.ones((1, 16)) / 4, 5)
        database.pixels(np.concatenate([ids[0], np.arange(12)]))


@pytest.mark.parametrize(
    ("kind", "column"), [("patches", "patch_id"), ("patches", "x1"), ("metadata", "author")]
)
def test_part_that_lost_a_column_is_named(
    built: Path, tmp_path: Path, kind: str, column: str
) -> None:
    """A Parquet footer has no checksum: a flipped bit may rename a column."""
    shutil.copytree(built / "db", tmp_path / "db")
    opened = RetrievalDatabase.open(str(tmp_path / "db"))
    path = opened.version.parts_of(kind)[0].path
    table = opened.folder.read_table(path)
    opened.folder.write_table(path, table.rename_columns({column: "q"}))
    with pytest.raises(StorageError, match=f"no column {column}") as caught:
        opened.records(np.array([0]))
    assert caught.value.where.endswith(path)
