"""`rdm cache build` on the command line, with neighbors inlined and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., tuple[int, dict[str, Any], str]]


def test_neighbors_are_inlined_on_demand(
    rdm: Command, photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    root, source, out = tmp_path / "db", f"folder://{photos}", tmp_path / "cache"
    crop = ("--set", "queries.crop.frame_size=40", "--set", "queries.crop.patch_size=24")
    sets = (
        "--set",
        f"encoder={tiny_encoder}",
        "--set",
        "crop.frame_size=40",
        "--set",
        "crop.patch_size=24",
    )
    assert (
        rdm("database", "build", "--root", root, "--source", source, "--dask", "inline", *sets)[0]
        == 0
    )
    build = (
        "cache",
        "build",
        "--queries",
        source,
        "--out",
        out,
        "--dask",
        "inline",
        "--set",
        "resolution=32",
        *crop,
    )
    code, planned, _ = rdm(*build, "--inline-neighbors", root, "--dry-run")
    assert (code, planned["inline_neighbors"], out.exists()) == (0, str(root), False)
    # the database has no neighbors of these crops yet
    assert rdm(*build, "--inline-neighbors", root)[0] == 1
    neighbors = (
        "--queries",
        source,
        "--name",
        "train",
        "--dask",
        "inline",
        "--set",
        "k_stored=4",
        *crop,
    )
    assert rdm("neighbors", "build", "--root", root, *neighbors)[0] == 0
    code, built, _ = rdm(*build)
    assert code == 0
    assert "inlined_neighbors" not in built
    assert not (out / "neighbors.json").exists()
    code, built, _ = rdm(*build, "--inline-neighbors", root)
    assert (code, built["inlined_neighbors"], built["database_version"]) == (0, 4, 2)
    assert (out / "neighbors.json").exists()


def test_photographs_that_are_not_usable_are_counted_by_cause(
    rdm: Command, photos: Path, tmp_path: Path
) -> None:
    (photos / "p01.jpg").write_bytes(b"")
    (photos / "p02.jpg").write_bytes(b"text")
    build = (
        "cache",
        "build",
        "--queries",
        f"folder://{photos}",
        "--out",
        tmp_path / "cache",
        "--dask",
        "inline",
    )
    code, built, _ = rdm(
        *build, "--set", "queries.crop.frame_size=40", "--set", "queries.crop.patch_size=24"
    )
    assert code == 3
    assert (built["failures"], built["causes"]) == (2, {"empty file": 1, "not a picture": 1})


@pytest.mark.parametrize(
    ("option", "told"), [("--dask", "by no worker"), ("--set", "classes have no settings")]
)
def test_what_classes_do_not_hear_is_refused(
    rdm: Command, tmp_path: Path, option: str, told: str
) -> None:
    code, _, error = rdm(
        "cache", "annotate", "--cache", tmp_path, "--with", "classes", option, "inline"
    )
    assert code == 2
    assert told in error
