from __future__ import annotations

import pyarrow as pa
import pytest

from rdm.database.changes.delete_where import matching_rows
from rdm.errors import UsageError

BY, ZERO = (
    "https://creativecommons.org/licenses/by/2.0/",
    "https://creativecommons.org/publicdomain/zero/1.0/",
)
TABLE = pa.table(
    {
        "image_id": ["a", "b", "c", "d"],
        "license": [BY, BY, ZERO, None],
        "author": ["X", "Y", "X", "Z"],
        "width": pa.array([10, 20, 30, None], pa.int32()),
    }
)


def found(condition: str) -> str:
    return "".join(matching_rows(TABLE, condition)["image_id"].to_pylist())


@pytest.mark.parametrize(
    ("condition", "images"),
    [
        ("author == 'X'", "ac"),
        ("author != 'X'", "bd"),
        (f"license == '{BY}' and author == 'X'", "a"),
        ("author == 'Y' or author == 'Z'", "bd"),
        ("author in ['X', 'Z']", "acd"),
        ("author not in ('X', 'Z')", "b"),
        ("not (author == 'X')", "bd"),
        ("width < 20", "a"),
        ("width <= 20", "ab"),
        ("width > 20", "c"),
        ("20 <= width", "bc"),
        ("'X' == author", "ac"),
        ("10 < width <= 30", "bc"),
        ("width > -1", "abc"),
        ("image_id == author", ""),
        ("author == 'X' and (width == 10 or width == 30) and not image_id == 'a'", "c"),
        ("  author == 'X'\n", "ac"),
    ],
)
def test_condition_selects_the_rows_for_which_it_holds(condition: str, images: str) -> None:
    assert found(condition) == images


@pytest.mark.parametrize(
    "condition", [f"license != '{BY}'", f"license not in ['{BY}']", f"not (license == '{BY}')"]
)
def test_empty_cell_fulfills_no_comparison(condition: str) -> None:
    assert found(condition) == "c"


UNSIGNED = pa.table({"image_id": ["a", "b", "c", "d"], "author": ["X", "", None, "Y"]})


@pytest.mark.parametrize(
    ("condition", "images"),
    [
        ("author != 'X'", "d"),
        ("author not in ['X']", "d"),
        ("not author == 'X'", "d"),
        ("not author in ['X']", "d"),
        ("not author not in ['X']", "a"),
        ("author < 'Y'", "a"),
        ("author != image_id", "ad"),
        ("not (author == 'X' and image_id == 'a')", "bcd"),
        ("not (author == 'X' or image_id == 'b')", "d"),
    ],
)
def test_empty_text_is_as_a_missing_one_whichever_way_round_it_is_asked(
    condition: str, images: str
) -> None:
    assert "".join(matching_rows(UNSIGNED, condition)["image_id"].to_pylist()) == images


@pytest.mark.parametrize(
    ("condition", "images"),
    [
        ("author == ''", "bc"),
        ("'' == author", "bc"),
        ("author != ''", "ad"),
        ("not author == ''", "ad"),
        ("author in ['', 'X']", "abc"),
        ("author not in ['', 'X']", "d"),
        ("author in ['']", "bc"),
        ("author == '' or author == 'X'", "abc"),
    ],
)
def test_empty_cells_are_asked_for_as_empty_text(condition: str, images: str) -> None:
    assert "".join(matching_rows(UNSIGNED, condition)["image_id"].to_pylist()) == images


def test_rows_are_given_back_as_they_are() -> None:
    assert matching_rows(UNSIGNED, "author == ''").to_pylist() == UNSIGNED.slice(1, 2).to_pylist()


def test_unknown_column_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(UsageError, match="there is no column 'licence'") as caught:
        found("licence == 'x'")
    assert caught.value.fix == "columns: image_id, license, author, width"


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "author",
        "True",
        "author == ",
        "author = 'X'",
        "author == f('X')",
        "__import__('os').system('true')",
        "author.upper() == 'X'",
        "author == 'X' + 'Y'",
        "author in 'XY'",
        "author in []",
        "author in authors",
        "author is 'X'",
        "'X' in author",
        "1 < 2",
        "[author == 'X' for author in 'XY']",
        "lambda: author",
        "author == None",
        "author == -'X'",
        "width == 99999999999999999999",
        "width > -99999999999999999999",
        "width in [1, 99999999999999999999]",
        "author == 'X' if True else False",
        "(" * 300 + "author == 'X'" + ")" * 300,
        "not " * 5000 + "author == 'X'",
        "author == 'X'\0",
    ],
)
@pytest.mark.filterwarnings("ignore:.*str.* literal:SyntaxWarning")
def test_anything_else_is_refused(condition: str) -> None:
    with pytest.raises(UsageError):
        found(condition)


def test_value_of_another_type_is_refused_and_the_types_are_told() -> None:
    with pytest.raises(UsageError, match="does not fit its columns") as caught:
        found("width == 'wide'")
    assert "width is int32" in caught.value.fix
