"""`database://DB` over a database that is built and changed for real."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.errors import SourceError
from rdm.sources import CropConfig, QuerySet, QuerySetConfig, open_source

INLINE = ComputeConfig(dask="inline")


@pytest.fixture
def root(photos: Path, tmp_path: Path, tiny_encoder: str) -> Path:
    crop = CropConfig(frame_size=40, patch_size=24)
    config = BuildConfig(
        source=f"folder://{photos}", encoder=tiny_encoder, precision="float32", crop=crop
    )
    run_build(DatabaseBuilder(str(tmp_path / "db"), config), INLINE)
    return tmp_path / "db"


def stored(root: Path) -> dict[str, bytes]:
    source = open_source(f"database://{root}")
    return {row["image_id"]: source.read(row["location"]) for row in source.listing().to_pylist()}


def test_it_lists_what_the_database_was_made_of(root: Path, photos: Path) -> None:
    assert stored(root) == {path.name: path.read_bytes() for path in photos.iterdir()}


def test_what_was_removed_is_not_listed_although_its_tar_still_has_it(root: Path) -> None:
    run_build(update_builder(str(root), Removal(image_ids=frozenset({"p03.jpg"}))), INLINE)
    assert sorted(stored(root)) == [f"p{number:02d}.jpg" for number in range(12) if number != 3]
    assert open_source(f"webdataset://{root}/images").listing().num_rows == 12


def test_what_was_replaced_is_listed_with_its_newer_bytes(
    root: Path, photos: Path, encoded: Callable[..., bytes]
) -> None:
    (photos / "p01.jpg").write_bytes(encoded(77))
    run_build(update_builder(str(root)), INLINE)
    assert stored(root)["p01.jpg"] == encoded(77)
    assert len(stored(root)) == 12


def test_a_query_set_over_it_is_the_same_whatever_the_times_of_its_tars(root: Path) -> None:
    def crops() -> dict[str, Any]:
        queries = QuerySet(
            QuerySetConfig(
                source=f"database://{root}", crop=CropConfig(frame_size=40, patch_size=24)
            )
        )
        return {
            "digest": queries.digest,
            **{crop.key: crop.sha256 for crop in queries.crops("00000", [])},
        }

    assert len(crops()) > 12
    before = crops()
    path = root / "images" / "00000.tar"
    os.utime(path, (0, 0))
    assert crops() == before


def test_turned_photographs_are_turned(root: Path) -> None:
    path = root / "images" / "00000.parquet"
    ledger = pq.read_table(path)
    turned = ledger.set_column(
        ledger.column_names.index("rotation"), "rotation", [[90] * ledger.num_rows]
    )
    pq.write_table(turned.cast(ledger.schema), path)
    assert set(open_source(f"database://{root}").listing()["rotation"].to_pylist()) == {90}


def test_a_folder_without_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no database here"):
        open_source(f"database://{tmp_path}")
