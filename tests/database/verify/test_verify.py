"""`verify` names what broke: a flipped bit in any part, a missing one, and each invariant that
digests do not show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rdm.compute import ComputeConfig, compute_pool
from rdm.database import NeighborConfig, NeighborTable, RetrievalDatabase, build_neighbors
from rdm.database.building.results import BuildResult
from rdm.database.verify.verify import verify_database
from rdm.errors import DatabaseError, RdmError
from rdm.sources import CropConfig, QuerySetConfig
from rdm.sources.photographs.filters import FilterConfig
from rdm.storage import Folder, VersionStore

KINDS = {
    "images", "ledger", "patches", "embeddings", "metadata", "dropped", "duplicates", "index",
    "infos", "queryset", "neighbors", "queries",
}  # fmt: skip
TABLE = "neighbors/train/000002/00000.parquet"


@pytest.fixture(scope="session")
def complete_base(
    tmp_path_factory: pytest.TempPathFactory,
    build: Callable[..., BuildResult],
    encoded: Callable[..., bytes],
) -> Path:
    """A database that has a part of every kind, near-duplicates and patches left out among them."""
    base = tmp_path_factory.mktemp("complete")
    for name, seeds in (("photos", [*range(12), 3]), ("queries", range(100, 104))):
        (base / name).mkdir()
        for number, seed in enumerate(seeds):
            (base / name / f"p{number:02d}.jpg").write_bytes(encoded(seed))
    filters = FilterConfig(near_duplicate_bits=4, min_contrast=22)
    build(base / "db", base / "photos", filters=filters)
    crop = CropConfig(frame_size=40, patch_size=24)
    queries = QuerySetConfig(source=f"folder://{base}/queries", crop=crop)
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        build_neighbors(
            str(base / "db"), "train", NeighborConfig(queries=queries, k_stored=4), pool
        )
    return base / "db"


@pytest.fixture
def root(complete_base: Path, tmp_path: Path) -> Path:
    shutil.copytree(complete_base, tmp_path / "db")
    return tmp_path / "db"


def part_of(root: Path, kind: str) -> str:
    return VersionStore(Folder(root)).require().parts_of(kind)[0].path


def flip_bit(path: Path) -> None:
    """Turn a bit over in the middle of a file, under this name alone."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def recorded(root: Path, **fields: Any) -> None:
    """Commit the version again, with what its files are now and other fields: only invariants can
    tell."""
    store = VersionStore(Folder(root))
    version = store.require()
    parts = [store.describe_part(part.kind, part.path, part.num_rows) for part in version.parts]
    store.commit(version.model_copy(update={"parts": parts, **fields}))


def rewrite(root: Path, kind: str, column: str, row: int, value: Any) -> str:
    """Give one cell of the first part of a kind another value; return the part's path."""
    folder, path = Folder(root), part_of(root, kind)
    table = folder.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    place, field = table.column_names.index(column), table.schema.field(column)
    folder.write_table(path, table.set_column(place, field, pa.array(values, field.type)))
    recorded(root)
    return path


def test_complete_database_has_parts_of_every_kind_and_no_findings(root: Path) -> None:
    assert {part.kind for part in VersionStore(Folder(root)).require().parts} == KINDS
    assert verify_database(str(root)) == []


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_flipped_bit_is_found_and_named(root: Path, kind: str) -> None:
    path = part_of(root, kind)
    flip_bit(root / path)
    assert verify_database(str(root))[0] == f"{path} differs from its recorded digest"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_missing_part_is_named(root: Path, kind: str) -> None:
    path = part_of(root, kind)
    (root / path).unlink()
    assert verify_database(str(root)) == [f"{path} is missing"]


@pytest.mark.parametrize("name", ["manifest.json", "versions/000002.json"])
def test_flipped_bit_of_manifest_or_version_is_refused(root: Path, name: str) -> None:
    flip_bit(root / name)
    with pytest.raises(RdmError, match="manifest|version file|not JSON"):
        verify_database(str(root))


@pytest.mark.parametrize("name", ["index/knn.index", "index/index_infos.json", "image.index"])
def test_flipped_bit_of_a_published_index_is_named(root: Path, name: str) -> None:
    flip_bit(root / name)
    assert verify_database(str(root)) == [f"{name} differs from its recorded digest"]


def test_tampered_version_is_refused(root: Path) -> None:
    path = root / "versions" / "000002.json"
    path.write_bytes(path.read_bytes().replace(b'"num_images": 12', b'"num_images": 13'))
    with pytest.raises(DatabaseError, match="differs from what the manifest promises"):
        verify_database(str(root))


@pytest.mark.parametrize("factor", [2, np.nan])
def test_vector_that_is_no_unit_vector_is_found(root: Path, factor: float) -> None:
    folder, path = Folder(root), part_of(root, "embeddings")
    folder.write_array(path, np.asarray(folder.read_array(path)) * np.float16(factor))
    recorded(root)
    assert verify_database(str(root))[0] == f"{path} has vectors that are not unit vectors"


@pytest.mark.parametrize("kind", ["patches", "metadata", "ledger", "embeddings"])
def test_lost_row_is_found(root: Path, kind: str) -> None:
    folder, path = Folder(root), part_of(root, kind)
    if kind == "embeddings":
        folder.write_array(path, np.asarray(folder.read_array(path))[:-1])
    else:
        table = folder.read_table(path)
        folder.write_table(path, table.slice(0, table.num_rows - 1))
    recorded(root)
    assert any(
        finding.startswith(f"{path} has ") and "rows instead of" in finding
        for finding in findings_of(root)
    )


def findings_of(root: Path) -> list[str]:
    """Return what verify says, or the error that it ends with, as one finding."""
    try:
        return verify_database(str(root))
    except RdmError as error:
        return [f"{error.where}: {error.what}"]


@pytest.mark.parametrize(
    ("kind", "column", "value", "finding"),
    [
        ("patches", "patch_id", 9999, "does not number its patches from 0 on"),
        ("patches", "image_row", 99, "names photographs that images/00000.parquet has not"),
        ("patches", "image_row", 1, "and images/00000.parquet tell of different photographs"),
        ("patches", "image_id", "other", "and images/00000.parquet tell of different photographs"),
        ("patches", "x1", 49, "has boxes that leave their photographs"),
        ("patches", "x0", -1, "has boxes that leave their photographs"),
        ("metadata", "patch_id", 5, "and patches/patches_0000.parquet differ in patch_id"),
        ("metadata", "image_id", "other", "and patches/patches_0000.parquet differ in image_id"),
        ("metadata", "author", "Somebody else", "and images/00000.parquet differ in author"),
        ("metadata", "title", "Another", "and images/00000.parquet differ in title"),
        ("metadata", "landing_page", "a", "and images/00000.parquet differ in landing_page"),
        ("metadata", "sha256", "0" * 64, "and images/00000.parquet differ in sha256"),
        (
            "metadata",
            "license",
            "https://example.org/free",
            "and images/00000.parquet differ in license",
        ),
    ],
)
def test_row_that_contradicts_another_part_is_found(
    root: Path, kind: str, column: str, value: object, finding: str
) -> None:
    path = rewrite(root, kind, column, 0, value)
    assert f"{path} {finding}" in verify_database(str(root))


def test_picture_that_is_not_the_one_of_its_ledger_row_is_found(root: Path) -> None:
    flip_bit(root / part_of(root, "images"))
    recorded(root)
    (finding,) = verify_database(str(root))
    assert finding.startswith("images/00000.tar does not hold what images/00000.parquet says of p0")


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"num_patches": 99, "next_patch_id": 99}, "has 99 patches and next id 99 for"),
        ({"num_images": 3}, "has 3 photographs for 12 with living patches"),
        (
            {"deleted_image_ids": ["p05.jpg"]},
            "has living patches of p05.jpg, whose removal was asked for",
        ),
        ({"tombstones": [4, 4]}, "deletes patches that do not exist, or one twice"),
        ({"tombstones": [-1]}, "deletes patches that do not exist, or one twice"),
    ],
)
def test_version_that_contradicts_its_parts_is_found(
    root: Path, fields: dict[str, Any], finding: str
) -> None:
    recorded(root, **fields)
    assert any(
        found.startswith(f"versions/000002.json {finding}") for found in verify_database(str(root))
    )


def rewrite_table(root: Path, column: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    folder = Folder(root)
    table = folder.read_table(TABLE)
    kind = np.int64 if column == "neighbor_ids" else np.float32
    values = change(np.array(table[column].to_pylist(), kind))
    array = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    folder.write_table(TABLE, table.set_column(table.column_names.index(column), column, array))
    recorded(root)


def test_neighbor_that_does_not_exist_is_found(root: Path) -> None:
    rewrite_table(
        root,
        "neighbor_ids",
        lambda ids: np.where(np.arange(ids.size).reshape(ids.shape) == 0, 9999, ids),
    )
    assert verify_database(str(root)) == [f"{TABLE} names patches that do not exist"]


def test_unsorted_neighbors_are_found(root: Path) -> None:
    rewrite_table(root, "similarities", lambda values: values[:, ::-1])
    assert verify_database(str(root)) == [f"{TABLE} is not sorted by similarity"]


def test_similarity_that_is_not_that_of_its_crop_and_patch_is_found(root: Path) -> None:
    rewrite_table(root, "similarities", lambda values: values + np.float32(1e-3))
    assert verify_database(str(root)) == [
        f"{TABLE} holds similarities that are not those of its crops and patches"
    ]


def test_neighbors_that_are_not_the_nearest_are_found(root: Path) -> None:
    database = RetrievalDatabase.open(str(root))
    queries = NeighborTable(database.folder, "train").embeddings("00000")
    ids, similarities = database.search_vectors(queries, 5, exact=True)
    rewrite_table(root, "neighbor_ids", lambda _: ids[:, 1:])
    rewrite_table(root, "similarities", lambda _: similarities[:, 1:])
    assert verify_database(str(root)) == [f"{TABLE} does not hold the nearest patches"]


def test_lost_query_embedding_is_found(root: Path) -> None:
    folder, path = Folder(root), part_of(root, "queries")
    folder.write_array(path, np.asarray(folder.read_array(path))[:-1])
    recorded(root)
    rows = len(folder.read_table(TABLE))
    assert verify_database(str(root)) == [f"{path} has {rows - 1} rows for {rows} crops"]


def test_deleted_patch_in_a_neighbor_table_and_in_the_index_is_found(root: Path) -> None:
    version = VersionStore(Folder(root)).require()
    dead = Folder(root).read_table(TABLE)["neighbor_ids"].to_pylist()[0][0]
    recorded(
        root,
        tombstones=[dead],
        index=version.index.model_copy(update={"num_vectors": version.num_live_patches - 1}),
    )
    findings = verify_database(str(root))
    assert f"{TABLE} names deleted patches" in findings
    assert f"{part_of(root, 'index')} holds other patches than the living ones" in findings


def test_index_of_another_size_is_found(root: Path) -> None:
    version = VersionStore(Folder(root)).require()
    rows = version.num_patches
    recorded(root, tombstones=[0])
    assert f"{part_of(root, 'index')} has {rows} rows for {rows - 1} patches" in verify_database(
        str(root)
    )


def test_only_what_is_new_since_a_version_is_read(root: Path) -> None:
    flip_bit(root / part_of(root, "images"))
    assert verify_database(str(root), since=1) == []
    flip_bit(root / TABLE)
    assert verify_database(str(root), since=1) == [f"{TABLE} differs from its recorded digest"]
    assert len(verify_database(str(root), since=0)) == 2


def test_folder_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="not a retrieval database"):
        verify_database(str(tmp_path))
