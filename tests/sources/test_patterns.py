from __future__ import annotations

from pathlib import Path

import pytest

from rdm.sources.patterns import count_suffixes, expand_pattern, files_below, fixed_part, is_pattern


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of four tars, a hidden one, and a folder that is called like one."""
    for name in (
        "000.tar",
        "001.tar",
        "a/002.tar",
        "a/b/003.tar",
        ".004.tar",
        ".x/005.tar",
        "006.tar/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{000..001}.tar", ["000.tar", "001.tar"]),
        ("{001,000,001}.tar", ["000.tar", "001.tar"]),
        ("{a/002,a/b/003}.tar", ["a/002.tar", "a/b/003.tar"]),
        ("*.tar", ["000.tar", "001.tar"]),
        ("**/*.tar", ["000.tar", "001.tar", "a/002.tar", "a/b/003.tar"]),
        ("{a,a/b}/00[23].tar", ["a/002.tar", "a/b/003.tar"]),
    ],
)
def test_pattern_stands_for_files(folder: Path, pattern: str, names: list[str]) -> None:
    found = expand_pattern(f"{folder}/{pattern}")
    assert [path.relative_to(folder).as_posix() for path in found.paths] == names
    assert found.missing == []


def test_names_that_lead_to_nothing_are_missing(folder: Path) -> None:
    found = expand_pattern(f"{folder}/{{000..002}}.tar")
    assert found.missing == [folder / "002.tar"]
    assert expand_pattern(f"{folder}/{{000,001.tar").paths == []
    assert expand_pattern(f"{folder}/000.tar").paths == []


def test_fixed_part_is_the_folder_above_the_first_wildcard() -> None:
    assert fixed_part("/d/e/{0..3}/x*.tar") == Path("/d/e")
    assert fixed_part("/*/x.tar") == Path("/")
    assert [is_pattern(text) for text in ("/d/x.tar", "/d/{x}.tar", "/d/x?.tar")] == [
        False,
        True,
        True,
    ]


def test_visible_files_are_those_of_folders_that_are_not_hidden(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    assert names == ["000.tar", "001.tar", "006.tar/notes.txt", "a/002.tar", "a/b/003.tar"]
    assert count_suffixes(files_below(folder)) == "4 .tar, 1 .txt"
    assert count_suffixes([]) == "nothing"
