from __future__ import annotations

import pytest

from rdm.errors import UsageError
from rdm.sources import decode_image, open_source
from rdm.sources.kinds.samples import PUBLIC_DOMAIN
from rdm.sources.source import LISTING_SCHEMA

ROOT = "samples://openimages-birds"
PAINTINGS = "samples://met-paintings"


def ids(spec: str) -> set[str]:
    return set(open_source(spec).listing()["image_id"].to_pylist())


def test_all_photographs_are_listed() -> None:
    table = open_source(ROOT).listing()
    assert table.num_rows == 919
    assert table.schema == LISTING_SCHEMA
    assert set(table["license"].to_pylist()) == {"https://creativecommons.org/licenses/by/2.0/"}


def test_halves_are_disjoint_complete_and_balanced() -> None:
    database, queries = ids(f"{ROOT}/database"), ids(f"{ROOT}/queries")
    assert not database & queries
    assert database | queries == ids(ROOT)
    assert abs(len(database) - len(queries)) < 100


def test_photograph_reads_and_decodes() -> None:
    source = open_source(f"{ROOT}/queries")
    assert decode_image(source.read(source.listing()["location"][0].as_py())).size == (120, 120)


def test_location_cannot_leave_the_samples() -> None:
    with pytest.raises(OSError, match="ATTRIBUTION"):
        open_source(ROOT).read("../../ATTRIBUTION.md")


def test_photographers_are_credited_once_each() -> None:
    credits = open_source(ROOT).credits()
    assert len(set(credits)) == len(credits) == 782
    assert all(author.name and author.url.startswith("https://") for author in credits)


def test_paintings_are_another_collection_with_a_page_each() -> None:
    source = open_source(PAINTINGS)
    table = source.listing()
    assert table.num_rows == 174
    assert set(table["license"].to_pylist()) == {PUBLIC_DOMAIN}
    for row in table.select(["image_id", "landing_page"]).to_pylist():
        page = f"https://www.metmuseum.org/art/collection/search/{row['image_id']}"
        assert row["landing_page"] == page
    assert min(decode_image(source.read(table["location"][0].as_py())).size) > 300
    assert source.credits() == ()


def test_paintings_have_their_titles_and_artists() -> None:
    rows = {row["image_id"]: row for row in open_source(PAINTINGS).listing().to_pylist()}
    madonna = rows["436892"]
    assert (madonna["title"], madonna["author"]) == ("Madonna and Child", "Filippino Lippi")
    assert all(row["title"] for row in rows.values())
    # three are of nobody whose name is known
    assert sum(not row["author"] for row in rows.values()) == 3
    assert "Attributed to Qu Ding" in {row["author"] for row in rows.values()}


def test_photographs_whose_authors_are_one_list_name_none_each() -> None:
    table = open_source(ROOT).listing()
    for column in ("author", "title", "landing_page"):
        assert set(table[column].to_pylist()) == {""}


@pytest.mark.parametrize("rest", ["", "openimages-cats", "openimages-birds/train"])
def test_unknown_samples_are_a_usage_error(rest: str) -> None:
    with pytest.raises(UsageError, match="there are no samples"):
        open_source(f"samples://{rest}")
