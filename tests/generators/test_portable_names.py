"""Of a path in a name, what leaves the machine."""

from __future__ import annotations

import pytest

from rdm.generators.portable_names import portable_name


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("folder:///home/me/birds?limit=3", "folder://birds?limit=3"),
        ("urls:///home/me/list.csv?boxes=/home/me/b.csv", "urls://list.csv"),
        ("open_clip:ViT-B-32//home/me/w.pt", "open_clip:ViT-B-32/w.pt"),
        ("lite:~/heads", "lite:heads"),
        ("open_clip:ViT-B-32-quickgelu/openai", "open_clip:ViT-B-32-quickgelu/openai"),
        ("samples://openimages-birds/database", "samples://openimages-birds/database"),
        ("assets://encoder-lite", "assets://encoder-lite"),
    ],
)
def test_of_a_path_in_a_name_the_last_part_stays(name: str, portable: str) -> None:
    assert portable_name(name) == portable
