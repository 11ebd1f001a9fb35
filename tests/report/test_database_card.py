"""The dataset card of a real database whose ledger was given authors and licenses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.report.cards import NOT_UNLEARNED
from rdm.report.database_card import database_card
from rdm.sources import CropConfig
from rdm.storage import Folder

INLINE = ComputeConfig(dask="inline")
BY = "https://creativecommons.org/licenses/by/2.0/"


@pytest.fixture
def root(photos: Path, tmp_path: Path, tiny_encoder: str) -> Path:
    """A database of twelve photographs, and one that is broken."""
    (photos / "x.jpg").write_bytes(b"no picture")
    crop = CropConfig(frame_size=40, patch_size=24, min_patches=2, max_patches=2)
    config = BuildConfig(source=f"folder://{photos}", encoder=tiny_encoder, crop=crop)
    run_build(DatabaseBuilder(str(tmp_path / "db"), config), INLINE)
    return tmp_path / "db"


def give(root: Path, **columns: Callable[[int], str]) -> None:
    """Fill columns of the ledger by row."""
    folder, path = Folder(root), "images/00000.parquet"
    table = folder.read_table(path)
    for name, value in columns.items():
        values = pa.array([value(number) for number in range(table.num_rows)], pa.string())
        table = table.set_column(table.column_names.index(name), name, values)
    folder.write_table(path, table)


def card_of(root: Path, contact: str = "") -> str:
    return database_card(RetrievalDatabase.open(str(root)), contact)


def test_removed_photographs_are_counted_apart_from_deleted_patches(
    root: Path, photos: Path
) -> None:
    (photos / "p00.jpg").unlink()
    run_build(update_builder(str(root), Removal(frozenset(["p01.jpg"]))), INLINE)
    lines = card_of(root).splitlines()
    assert {
        "| Photographs | 10 |",
        "| Photographs removed on request | 1 |",
        "| Deleted patches | 4 |",
    } <= set(lines)


def test_one_license_for_all_is_the_cards(root: Path) -> None:
    give(root, license=lambda _: BY)
    card = card_of(root)
    assert 'license: "cc-by-2.0"' in card
    assert f"(<{BY}>)" in card


def test_several_licenses_are_counted_over_living_photographs(root: Path) -> None:
    give(root, license=lambda number: BY if number < 8 else "https://example.org/other")
    run_build(update_builder(str(root), Removal(frozenset(["p00.jpg"]))), INLINE)
    card = card_of(root)
    assert 'license: "other"' in card
    assert f"| {BY} | 7 |\n| https://example.org/other | 4 |" in card


def test_authors_are_counted_and_those_that_are_missing_are_a_gap(root: Path) -> None:
    give(root, author=lambda number: ["Ann", "Bea", ""][number % 3])
    card = card_of(root)
    assert "2 authors are named" in card
    assert "- 4 of 12 photographs have no author stated." in card


def test_failures_are_counted_by_cause(root: Path) -> None:
    card = card_of(root)
    assert "| not a picture | 1 |" in card
    assert "- 1 photographs that were asked for are not in it, see Left out." in card


def test_photograph_that_came_later_is_no_failure_any_more(
    root: Path, photos: Path, encoded: Callable[..., bytes]
) -> None:
    (photos / "x.jpg").write_bytes(encoded(50))
    run_build(update_builder(str(root)), INLINE)
    assert "No picture was left out." in card_of(root)


def test_contact_and_that_weights_are_not_unlearned_are_said(root: Path) -> None:
    assert f"write to a@example.org. {NOT_UNLEARNED}" in card_of(root, "a@example.org")


def test_page_of_a_patch_shows_photograph_place_credits_and_neighbors(
    root: Path, tmp_path: Path, examples: SimpleNamespace
) -> None:
    from rdm.report.html.database_pages import write_patch_page

    database = RetrievalDatabase.open(str(root))
    (record,) = database.records(database.living_ids()[5:6])
    write_patch_page(tmp_path / "patch.html", database, record.patch_id, 4)
    page = examples.Page((tmp_path / "patch.html").read_text(encoding="utf-8"))
    assert (page.open, page.mismatched) == ([], [])
    assert len(page.all("img")) == 1 + 1 + 4
    x0, y0, x1, y1 = record.box
    frame = f"left:{100 * x0 / 48:.2f}%;top:{100 * y0 / 40:.2f}%;right:{100 - 100 * x1 / 48:.2f}%"
    assert any(frame in inner.get("style", "") for inner in page.all("i"))
    assert f"{x0}, {y0}, {x1}, {y1}" in page.words
    assert record.image_id in page.words
