"""Foreign embeddings that are damaged, lie about their size, or hold code: each an error that names
the file."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.database.exchange.foreign_layouts import foreign_parts, unit_vectors
from rdm.errors import DatabaseError, RdmError, StorageError

VECTORS = np.eye(4, 8, dtype=np.float16)


def write_clip(folder: Path, vectors: np.ndarray, table: pa.Table) -> Path:
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(exist_ok=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", vectors)
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")
    return folder


def write_npz(folder: Path, **changed: Any) -> Path:
    arrays = {
        "embedding": VECTORS,
        "img_id": np.arange(4),
        "patch_coords": np.ones((4, 4), np.int64),
        **changed,
    }
    np.savez(
        folder / "4x8-part_1.npz",
        **{name: array for name, array in arrays.items() if array is not None},
    )
    return folder


def load(kind: Any, folder: Path) -> Any:
    part = foreign_parts(kind, str(folder))[0]
    found = part.load()
    return found, unit_vectors(found, part.where)


NAMED = pa.table({"image_path": ["a", "b", "c", "d"]})


@pytest.mark.parametrize(
    ("vectors", "table", "message"),
    [
        (VECTORS, NAMED.slice(1), "4 embeddings, but 3 rows"),
        (VECTORS[0], NAMED, "not rows of numbers"),
        (np.ones((4, 8), np.int64), NAMED, "not rows of numbers"),
        (
            VECTORS * np.array([[1], [1], [0], [1]], np.float16),
            NAMED,
            "row 2 is zero or not finite",
        ),
        (
            np.where(np.arange(4)[:, None] == 1, np.float16("nan"), VECTORS),
            NAMED,
            "row 1 is zero or not finite",
        ),
        (VECTORS, pa.table({"image_path": ["a", "b", None, "d"]}), "row 2 has no image id"),
        (VECTORS, pa.table({"caption": ["a", "b", "c", "d"]}), "row 0 has no image id"),
        (VECTORS, NAMED.append_column("patch_id", pa.array([0, None, 2, 3])), "patch_id has gaps"),
        (VECTORS, NAMED.append_column("x0", pa.array(["a", "b", "c", "d"])), "not of its kind"),
    ],
)
def test_damaged_clip_retrieval_part_names_the_file_and_the_row(
    tmp_path: Path, vectors: np.ndarray, table: pa.Table, message: str
) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        load("clip-retrieval", write_clip(tmp_path, vectors, table))
    assert "_0." in caught.value.where


NO_ROWS = [
    np.empty(0),
    np.empty((0, 8), np.float16),
    np.empty((0, 0), np.float32),
    np.empty(0, np.int64),
]


@pytest.mark.parametrize("vectors", NO_ROWS)
@pytest.mark.parametrize(
    "table", [NAMED.slice(4), pa.table({}), pa.table({"image_path": pa.nulls(0), "x0": []})]
)
def test_part_without_rows_beside_metadata_without_rows_is_sound(
    tmp_path: Path, vectors: np.ndarray, table: pa.Table
) -> None:
    found, (unit, norms) = load("clip-retrieval", write_clip(tmp_path, vectors, table))
    assert (len(found.vectors), found.rows.num_rows, len(unit), len(norms)) == (0, 0, 0, 0)


@pytest.mark.parametrize("vectors", [*NO_ROWS, np.array(1.0)])
def test_part_without_rows_beside_metadata_with_rows_is_an_error(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    with pytest.raises(DatabaseError, match=r"not rows of numbers|0 embeddings, but 4 rows"):
        load("clip-retrieval", write_clip(tmp_path, vectors, NAMED))


def test_metadata_without_rows_beside_vectors_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="4 embeddings, but 0 rows"):
        load("clip-retrieval", write_clip(tmp_path, VECTORS, NAMED.slice(4)))


@pytest.mark.parametrize("vectors", NO_ROWS)
@pytest.mark.parametrize("coordinates", [np.empty((0, 4), np.int64), np.empty(0)])
def test_npz_part_without_rows_is_sound(
    tmp_path: Path, vectors: np.ndarray, coordinates: np.ndarray
) -> None:
    folder = write_npz(tmp_path, embedding=vectors, img_id=np.empty(0), patch_coords=coordinates)
    found, (unit, _) = load("rdm-npz", folder)
    assert (len(found.vectors), found.rows.num_rows, len(unit)) == (0, 0, 0)


@pytest.mark.parametrize(
    "changed", [{"embedding": np.empty(0)}, {"img_id": np.empty(0)}, {"img_id": np.array(3)}]
)
def test_npz_part_in_which_one_array_alone_has_no_rows_is_an_error(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(
        DatabaseError, match=r"not rows of numbers|0 embeddings|not four numbers|not one name"
    ):
        load("rdm-npz", write_npz(tmp_path, **changed))


def test_vectors_without_metadata_are_an_error(tmp_path: Path) -> None:
    write_clip(tmp_path, VECTORS, NAMED)
    (tmp_path / "metadata" / "metadata_0.parquet").unlink()
    with pytest.raises(DatabaseError, match="metadata_0.parquet"):
        load("clip-retrieval", tmp_path)


@pytest.mark.parametrize("kind", ["clip-retrieval", "rdm-npz"])
def test_folder_without_embeddings_says_what_was_looked_for(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(DatabaseError, match="the folder has no"):
        foreign_parts(kind, str(tmp_path))


def test_official_part_is_read_as_it_is(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32) * 9
    write_npz(
        tmp_path,
        embedding=raw,
        patch_coords=np.arange(16).reshape(4, 4),
        img_id=np.array([7, 7, 8, 9]),
    )
    found, (unit, norms) = load("rdm-npz", tmp_path)
    np.testing.assert_allclose(norms, np.linalg.norm(raw, axis=1), rtol=1e-6)
    np.testing.assert_allclose(unit * norms[:, None], raw, rtol=2e-3, atol=2e-2)
    assert found.rows["image_id"].to_pylist() == ["7", "7", "8", "9"]
    assert found.rows["x1"].to_pylist() == [2, 6, 10, 14]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"img_id": None}, "no img_id"),
        ({"img_id": np.arange(3)}, "not four numbers a row"),
        ({"img_id": np.ones(4)}, "img_id is float64"),
        ({"patch_coords": np.ones((4, 3))}, "not four numbers a row"),
        ({"patch_coords": np.full((4, 4), np.nan)}, "row 0 are not pixels"),
        ({"patch_coords": np.full((4, 4), 2**40)}, "row 0 are not pixels"),
        ({"embedding": np.ones((3, 8), np.float32)}, "3 embeddings, but 4 rows"),
    ],
)
def test_damaged_npz_part_says_what_is_wrong(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatabaseError, match=message):
        load("rdm-npz", write_npz(tmp_path, **changed))


class Runs:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("array", ["img_id", "embedding"])
def test_python_objects_are_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path, **{array: np.array([Runs()] * 4, object)})
    with pytest.raises(StorageError, match="Python objects"):
        load("rdm-npz", tmp_path)
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.array([Runs()], object), allow_pickle=True)
    pq.write_table(NAMED.slice(3), tmp_path / "metadata" / "metadata_0.parquet")
    with pytest.raises(StorageError):
        load("clip-retrieval", tmp_path)
    assert not (tmp_path / "ran").exists()
    assert pickle.dumps(Runs())


def test_array_that_promises_more_than_it_has_takes_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 512)}
    )
    write_npz(tmp_path, embedding=None)
    with zipfile.ZipFile(tmp_path / "4x8-part_1.npz", "a") as archive:
        archive.writestr("embedding.npy", header.getvalue() + bytes(64))
    with pytest.raises(DatabaseError, match="but not that size"):
        load("rdm-npz", tmp_path)


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_mutated_npz_is_an_error_or_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    folder = write_npz(tmp_path_factory.mktemp("npz"))
    path, rng = folder / "4x8-part_1.npz", np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), count):
        data[place] = rng.integers(0, 256)
    path.write_bytes(data[: rng.integers(1, len(data) + 1)] if seed % 3 == 0 else data)
    try:
        found, (unit, _) = load("rdm-npz", folder)
    except RdmError:
        return
    assert unit.shape == (found.rows.num_rows, 8) or unit.ndim == 2
    assert np.isfinite(unit).all()


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_npz(tmp_path)
        (tmp_path / "4x8-part_1.npz").rename(tmp_path / f"4x8-part_{number}.npz_")
    for path in tmp_path.glob("*.npz_"):
        path.rename(path.with_suffix(".npz"))
    assert [part.files[0] for part in foreign_parts("rdm-npz", str(tmp_path))] == [
        f"4x8-part_{number}.npz" for number in (1, 9, 10)
    ]
