from __future__ import annotations

from written_recipe import neighbor, recipe

from rdm.sampling.recipe.credits import credits_text, photographs_of
from rdm.sources.source import Author

UNKNOWN = {"title": "", "author": "", "url": "", "landing_page": ""}


def test_a_photograph_is_credited_once_whatever_was_drawn_from_it() -> None:
    twice = [neighbor(0), neighbor(5, sha256=f"{0:064x}", image_id="i0"), neighbor(1)]
    records = [recipe(0, neighbors=twice), recipe(2)]
    assert [one.image_id for one in photographs_of(records)] == ["i0", "i1"]


def test_equal_ids_of_two_databases_are_two_photographs() -> None:
    of_two = [neighbor(0, sha256=""), neighbor(0, sha256="", database="paintings")]
    assert len(photographs_of([recipe(0, neighbors=of_two)])) == 2


def test_a_credit_has_title_author_source_and_license_with_their_addresses() -> None:
    line = (
        '"A crow, 0" by Zoë 写, https://example.org/0, '
        "CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/)"
    )
    assert credits_text([recipe(1)]).splitlines()[-1] == line


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    record = recipe(0, neighbors=[neighbor(0, **UNKNOWN, license="", license_url="")])
    assert credits_text([record]).splitlines()[-1] == (
        "Photograph i0 by an author whom the source does not name, license not stated"
    )


def test_authors_of_one_list_are_named_where_photographs_have_none_of_their_own() -> None:
    listed = [Author("Ann", "https://example.org/ann"), Author("Bo")]
    anonymous = recipe(0, neighbors=[neighbor(0, **UNKNOWN)])
    assert credits_text([anonymous], listed).endswith("Ann, https://example.org/ann\nBo\n")
    assert "Ann" not in credits_text([recipe(1)], listed)


def test_pictures_without_photographs_credit_nobody() -> None:
    assert credits_text([recipe(0)]) == (
        "These pictures were drawn without photographs to look at.\n"
    )
