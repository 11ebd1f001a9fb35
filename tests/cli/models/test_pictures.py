"""What is done with drawn pictures: inspected, found by a photograph, credited, drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from random_model import write_random_model

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.sampling.recipe.picture_file import read_picture
from rdm.sources import CropConfig

Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], tiny_encoder: str
) -> Path:
    """A folder with a database `db` of six photographs and a model `model` for it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    for number in range(6):
        (folder / "photos" / f"p{number}.jpg").write_bytes(encoded(number))
    config = BuildConfig(
        source=f"folder://{folder}/photos",
        encoder=tiny_encoder,
        crop=CropConfig(frame_size=40, patch_size=24, min_patches=1, max_patches=1),
    )
    run_build(DatabaseBuilder(str(folder / "db"), config), ComputeConfig(dask="inline"))
    write_random_model(folder / "model", RetrievalDatabase.open(str(folder / "db")))
    return folder


@pytest.fixture(scope="module")
def rdm_sample(place: Path) -> tuple[object, ...]:
    quick = ("--guidance", 1, "--set", "num_steps=1", "--set", "batch_size=2", "-k", 2)
    return ("sample", "--model", place / "model", "--database", place / "db", *quick)


@pytest.fixture
def drawn(rdm: Command, rdm_sample: tuple[object, ...], tmp_path: Path) -> Path:
    out = tmp_path / "out"
    assert rdm(*rdm_sample, "--text", "owl", "--seeds", "0-1", "--out", out)[0] == 0
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "samples.json").read_text())


def test_a_picture_is_reproduced(rdm: Command, place: Path, drawn: Path, tmp_path: Path) -> None:
    ask = ("reproduce", drawn / "00001.png", "--model", place / "model", "--database", place / "db")
    code, found, _ = rdm(*ask, "--out", tmp_path / "again.png")
    assert (code, found["identical"]) == (0, True)
    with Image.open(tmp_path / "again.png") as image:
        assert np.array_equal(np.asarray(image), read_picture(drawn / "00001.png").pixels)


def test_a_model_that_does_not_ship_is_asked_for(rdm: Command, place: Path, drawn: Path) -> None:
    code, _, error = rdm("reproduce", drawn / "00000.png", "--database", place / "db")
    assert code == 2
    assert "which does not ship" in error


def test_a_photograph_is_followed_to_its_pictures_and_out_of_its_database(
    rdm: Command, place: Path, drawn: Path, tmp_path: Path
) -> None:
    import shutil

    gone = rows(drawn)[0]["neighbors"][0]["image_id"]
    _, found, _ = rdm("pictures", drawn, "--of", gone)
    assert [Path(one["path"]).name for one in found["pictures"]] == ["00000.png", "00001.png"]

    root = shutil.copytree(place / "db", tmp_path / "db")
    code, found, _ = rdm("inspect", drawn / "00000.png", "--database", root)
    assert (found["conditioned_on_removed"], found["neighbor_states"]) == (False, ["there"] * 2)
    run_build(update_builder(str(root), Removal(frozenset([gone]))), ComputeConfig(dask="inline"))

    code, found, _ = rdm("inspect", drawn / "00000.png", "--database", root)
    assert (code, found["conditioned_on_removed"]) == (0, True)
    assert found["neighbor_states"] == ["removed", "there"]
    ask = ("reproduce", drawn / "00000.png", "--model", place / "model", "--database", root)
    code, _, error = rdm(*ask)
    assert code == 1
    assert f"the photograph {gone} was removed on request" in error


def test_inspect_shows_all_that_a_picture_carries(rdm: Command, drawn: Path) -> None:
    code, found, _ = rdm("inspect", drawn / "00000.png")
    assert code == 0
    assert {name: found[name] for name in rows(drawn)[0]} == rows(drawn)[0]
    assert found["pixels_are_as_drawn"] is True
    assert "trainedAlgorithmicMedia" in found["xmp"]


def test_credits_name_each_photograph_once(
    rdm: Command, rdm_sample: tuple[object, ...], tmp_path: Path
) -> None:
    ask = (*rdm_sample, "--text", "owl", "--seeds", "0-2", "--credits", "--out", tmp_path / "out")
    code, found, _ = rdm(*ask)
    assert code == 0
    lines = Path(found["credits"]).read_text().splitlines()
    credited = {one["image_id"] for row in rows(tmp_path / "out") for one in row["neighbors"]}
    named = [line.split()[1] for line in lines if line.startswith("Photograph ")]
    assert sorted(named) == sorted(credited)


def test_shares_are_recorded_and_shown(
    rdm: Command, rdm_sample: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    both = ("--attribution", "attention", "--attribution", "influence")
    assert rdm(*rdm_sample, "--text", "owl", "--seeds", "0-2", *both, "--out", out)[0] == 0
    for row in rows(out):
        for kind in ("attention", "influence"):
            assert sum(row["attribution"][kind]) == pytest.approx(1, abs=1e-4)
    names = sorted(path.name for path in (out / "attention").iterdir())
    assert names == [f"{picture:05d}-{token}.png" for picture in range(3) for token in range(2)]
    # a map shows the picture, so a photograph leads to it as well
    carried = read_picture(out / "attention" / "00002-1.png").record
    assert carried.neighbors == read_picture(out / "00002.png").record.neighbors


def test_pictures_without_shares_are_not_taken_for_those_with(
    rdm: Command, rdm_sample: tuple[object, ...], drawn: Path
) -> None:
    ask = (*rdm_sample, "--text", "owl", "--seeds", "0-1", "--out", drawn)
    code, _, error = rdm(*ask, "--attribution", "influence")
    assert code == 2
    assert "attribution differ" in error


def test_pictures_with_credits_alone_do_not_say_what_was_asked(
    rdm: Command, rdm_sample: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ask = (*rdm_sample, "--text", "secret owl", "--seeds", "0", "--metadata", "credits")
    assert rdm(*ask, "--out", out)[0] == 0
    assert b"secret" not in (out / "00000.png").read_bytes()
    carried = read_picture(out / "00000.png").record
    assert carried.to_json()["neighbors"] == rows(out)[0]["neighbors"]
