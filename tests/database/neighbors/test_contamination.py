"""Planted duplicates: the same file under another name, a crop of a photograph, and nothing of
either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.neighbors.contamination import Contamination, measure_contamination
from rdm.errors import UsageError
from rdm.report.html.contamination_page import write_contamination_page
from rdm.sources import CropConfig, QuerySetConfig


@pytest.fixture
def planted(tabled: Any, tmp_path: Path) -> Any:
    """The database with a query set of three: a copy of p02.jpg, the very pixels of patch 7, and a
    stranger."""
    from dataclasses import replace

    queries = tmp_path / "planted"
    queries.mkdir()
    (queries / "copy.jpg").write_bytes((tabled.photos / "p02.jpg").read_bytes())
    RetrievalDatabase.open(str(tabled.root)).pixels(np.array([7]))[0].save(queries / "crop.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(queries / "noise.png")
    crop = CropConfig(mode="grid", frame_size=24, patch_size=24)
    return replace(tabled, queries=QuerySetConfig(source=f"folder://{queries}", crop=crop))


def measured(planted: Any, threshold: float = 0.9999, **fields: object) -> Contamination:
    planted.table("planted", 5, exact=True, **fields)
    return measure_contamination(RetrievalDatabase.open(str(planted.root)), "planted", threshold)


def test_copied_file_and_cut_out_patch_are_found(planted: Any) -> None:
    found = measured(planted)
    copy, crop = (
        next(p for p in found.pairs if p.query_image == name) for name in ("copy.jpg", "crop.png")
    )
    database = RetrievalDatabase.open(str(planted.root))
    assert (copy.image_id, copy.match) == ("p02.jpg", "bytes")
    assert (crop.image_id, crop.match) == (
        database.records(np.array([7]))[0].image_id,
        "similarity",
    )
    assert crop.similarity == pytest.approx(1, abs=2e-3)
    assert (found.num_photographs, found.num_crops, found.same_photographs) == (3, 3, 1)
    assert "crop.png" in {pair.query_image for pair in found.leaks}
    assert found.pairs[0].match == "bytes"


def test_similarity_of_a_pair_is_the_greatest_of_its_crops_and_patches(planted: Any) -> None:
    copy = measured(planted).pairs[0]
    database = RetrievalDatabase.open(str(planted.root))
    table = NeighborTable(database.folder, "planted")
    keys, vectors = table.shard("00000")[0], np.asarray(table.embeddings("00000"))
    ids = [
        i for i in database.living_ids() if database.records(np.array([i]))[0].image_id == "p02.jpg"
    ]
    products = vectors[keys.index("copy.jpg/0")].astype(np.float64) @ database.embeddings(
        np.array(ids)
    ).T.astype(float)
    assert (copy.similarity, copy.patch_id) == (
        pytest.approx(products.max(), abs=1e-6),
        ids[products.argmax()],
    )


def test_what_the_table_excludes_does_not_leak(planted: Any) -> None:
    found = measured(planted, exclude_self=True, exclude_above=0.9999)
    assert len(found.pairs) >= 2
    assert found.leaks == ()
    half = measured(planted, exclude_self=True)
    assert all(pair.excluded == (pair.match == "bytes") for pair in half.pairs)


def test_deleted_photograph_no_longer_counts(planted: Any) -> None:
    from rdm.database.changes.plan import Removal

    measured(planted)
    planted.update(Removal(frozenset(["p02.jpg"])))
    found = measure_contamination(RetrievalDatabase.open(str(planted.root)), "planted", 0.9999)
    assert found.same_photographs == 0


def test_disjoint_query_set_is_clean(tabled: Any) -> None:
    found = measure_contamination(RetrievalDatabase.open(str(tabled.root)), "train", 1)
    assert (found.pairs, found.same_photographs, found.near_photographs, found.near_crops) == (
        (),
        0,
        0,
        0,
    )


def test_page_shows_the_pairs_side_by_side(planted: Any, tmp_path: Path) -> None:
    found = measured(planted)
    write_contamination_page(
        tmp_path / "pairs.html", RetrievalDatabase.open(str(planted.root)), found
    )
    text = (tmp_path / "pairs.html").read_text()
    assert "copy.jpg; in the database p02.jpg; same by bytes" in text
    assert text.count("data:image") == 2 * len(found.pairs)


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_threshold_must_be_a_similarity(tabled: Any, threshold: float) -> None:
    with pytest.raises(UsageError):
        measure_contamination(RetrievalDatabase.open(str(tabled.root)), "train", threshold)
