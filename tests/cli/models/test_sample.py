from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from random_model import write_random_model

from rdm.cli.main import run
from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.builder import BuildConfig, DatabaseBuilder
from rdm.database.building.jobs import run_build
from rdm.sources import CropConfig

Command = Callable[..., tuple[int, dict[str, Any], str]]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
QUICK = ("--guidance", 1, "--set", "num_steps=1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        (folder / f"p{number}.jpg").write_bytes(encoded(number))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny_encoder: str) -> Path:
    """A database of twelve patches, the same for every test here: none of them changes its
    patches."""
    config = BuildConfig(
        source=f"folder://{photos}",
        encoder=tiny_encoder,
        crop=CropConfig(frame_size=40, patch_size=24, min_patches=2, max_patches=2),
    )
    folder = tmp_path_factory.mktemp("database") / "db"
    run_build(DatabaseBuilder(str(folder), config), ComputeConfig(dask="inline"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"), RetrievalDatabase.open(str(root)))


def rows(out: Path) -> list[dict]:
    return json.loads((out / "samples.json").read_text())


@pytest.mark.parametrize(
    ("flags", "k"),
    [
        (("-k", 3), 3),
        (("--set", "k=2"), 2),
        (("-k", 4, "--set", "k=2"), 2),
        (("-k", 4, "--set", "k=8"), 8),
        (("--set", "k=8", "-k", 4), 8),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_flag_and_its_setting_are_one(
    rdm: Command, root: Path, model: Path, tmp_path: Path, flags: tuple[int | str, ...], k: int
) -> None:
    out = tmp_path / "samples"
    arguments = (
        "--model",
        model,
        "--database",
        root,
        "--text",
        "owl",
        "--seeds",
        "0-1",
        "--out",
        out,
    )
    code, result, _ = rdm("sample", *arguments, *QUICK, *flags)
    assert (code, result["pictures"], result["drawn"], result["device"]) == (0, 2, 2, "cpu")
    _, found, _ = rdm("database", "search", "--root", root, "--text", "owl", "-k", k, "--exact")
    nearest = [row["patch_id"] for row in found["results"]]
    for row in rows(out):
        assert [neighbor["patch_id"] for neighbor in row["neighbors"]] == nearest
        assert row["settings"]["k"] == k
        assert row["settings"]["guidance_scale"] == 1.0


def test_one_picture_after_ten_into_the_same_folder_is_refused(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    ask = (
        "sample",
        "--model",
        model,
        "--database",
        root,
        "--text",
        "owl",
        "--out",
        tmp_path / "out",
        *QUICK,
    )
    assert rdm(*ask, "--seeds", "0-9")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    code, _, error = rdm(*ask, "--seeds", "0")
    assert code == 2
    assert "another request: seeds differ" in error
    assert "fix: give --out a new folder" in error
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    code, result, _ = rdm(*ask, "--seeds", "0-9")
    assert (code, result["drawn"]) == (0, 0)


def test_inspect_shows_what_a_picture_was_drawn_from(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ask = (
        "sample",
        "--model",
        model,
        "--database",
        root,
        "--text",
        "owl",
        "--seeds",
        "3",
        "--out",
        out,
    )
    assert rdm(*ask, "-k", 2, *QUICK)[0] == 0
    code, found, _ = rdm("inspect", out / "00000.png")
    assert (code, found["query"]["label"], found["seed"]) == (0, "owl", 3)
    assert found["neighbors"] == rows(out)[0]["neighbors"]


@NO_GPU
@pytest.mark.parametrize(
    "command",
    [
        "sample --model {model} --database {root} --text owl --out {new}",
        "evaluate --model {model} --database {root} --reference folder://{photos} --out {new}",
        "evaluate-autoencoder --autoencoder assets://autoencoder-kl-f4 --source folder://{photos}",
        "database search --root {root} --text owl",
        "database build --root {new} --source folder://{photos}",
        "neighbors build --root {root} --queries folder://{photos} --name t",
        "cache build --queries folder://{photos} --out {new}",
    ],
    ids=lambda command: " ".join(command.split(" --")[0].split()),
)
def test_a_gpu_that_is_not_there_is_refused(
    command: str,
    root: Path,
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"root": root, "model": model, "photos": photos, "new": tmp_path / "new"}
    code = run([*command.format(**places).split(), "--device", "cuda"])
    # log lines
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("20")]
    assert code == 1
    assert error[0] == "error: device is cuda, but PyTorch finds no GPU here"
    assert error[-1].endswith("or --device cpu")
    assert len(error) <= 3


def test_commands_say_what_they_computed_on(
    rdm: Command, root: Path, photos: Path, tmp_path: Path
) -> None:
    small = (
        "--set",
        "queries.crop.frame_size=32",
        "--set",
        "queries.crop.patch_size=32",
        "--dask",
        "inline",
    )
    queries = ("--queries", f"folder://{photos}")
    assert rdm("database", "search", "--root", root, "--text", "owl", "-k", 1)[1]["device"] == "cpu"
    assert (
        rdm(
            "neighbors",
            "build",
            "--root",
            root,
            *queries,
            "--name",
            "t",
            "--set",
            "k_stored=2",
            *small,
        )[1]["device"]
        == "cpu"
    )
    cache = ("--out", tmp_path / "cache", "--set", "resolution=32", "--device", "cpu")
    assert rdm("cache", "build", *queries, *cache, *small)[1]["device"] == "cpu"


def test_model_that_ships_is_asked_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "sample",
        "--model",
        "assets://rdm-64",
        "--unconditional",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(command) == 2
    assert "the model" in capsys.readouterr().err


def test_name_that_does_not_ship_is_refused_with_those_that_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            [
                "sample",
                "--model",
                "assets://none",
                "--unconditional",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert "there is no embedded model 'none'" in error
    assert "assets://rdm-64" in error


def asked(root: Path, model: Path, out: Path) -> tuple[object, ...]:
    return (
        *("sample", "--model", model, "--database", root, "--text", "owl", "--seeds", "0-1"),
        *("--out", out, "-k", 2, "--guidance", 1, "--set", "num_steps=2"),
    )


@pytest.mark.parametrize("sampler", ["dpm++2m", "dpm++2m-sde", "unipc", "heun", "plms", "ddpm"])
def test_samplers_are_asked_for_by_name(
    rdm: Command, root: Path, model: Path, tmp_path: Path, sampler: str
) -> None:
    code, found, error = rdm(*asked(root, model, tmp_path / "out"), "--set", f"sampler={sampler}")
    assert (code, found.get("pictures")) == (0, 2), error
    assert rows(tmp_path / "out")[0]["settings"]["sampler"] == sampler


def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    for settings, words in (
        (("sampler=dpm++2m", "eta=0"), "DPM-Solver++ 2M has no eta"),
        (("sampler=ddpm", "spacing=karras"), "does not go with karras spacing"),
        (("thresholding=dynamic",), "latents have no known range"),
        (("sampler=ddpm", "variance=learned"), "has not learned a variance"),
        (("guidance_scales.text=2",), "a guidance scale for text, but the model reads: neighbors"),
        (("num_steps=5000",), "5000 steps, but the model has"),
        ((f"autoguidance={tmp_path}",), "there is no model here"),
    ):
        flags = [part for setting in settings for part in ("--set", setting)]
        code, _, error = rdm(*asked(root, model, tmp_path / "out"), *flags)
        assert code == (1 if "autoguidance" in settings[0] else 2)
        assert words in error
        assert not (tmp_path / "out").exists()


def test_a_weaker_model_is_named_in_the_record_without_its_folder(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    flags = ("--set", f"autoguidance={model}", "--set", "guidance_scale=2")
    assert rdm(*asked(root, model, tmp_path / "out"), *flags)[0] == 0
    name, digest = rows(tmp_path / "out")[0]["settings"]["autoguidance"].split()
    assert name == model.name
    assert len(digest) == 16


def test_a_picture_is_changed_and_what_a_mask_keeps_is_not(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "right.png")
    mask.resize((32, 32)).save(tmp_path / "small.png")
    start = ("--start", tmp_path / "red.png")
    assert rdm(*asked(root, model, tmp_path / "a"), *start, "--strength", 0.5)[0] == 0
    with_mask = (*start, "--mask", tmp_path / "right.png")
    assert rdm(*asked(root, model, tmp_path / "b"), *with_mask)[0] == 0
    picture = Image.open(tmp_path / "b" / "00000.png")
    assert picture.crop((0, 0, picture.width // 2, picture.height)).getcolors() == [
        (picture.width // 2 * picture.height, (200, 30, 30))
    ]
    code, _, error = rdm(
        *asked(root, model, tmp_path / "c"), *start, "--mask", tmp_path / "small.png"
    )
    assert code == 2
    assert "the mask has 32 x 32 pixels, the picture to start from 64 x 64" in error
    assert not (tmp_path / "c").exists()
    code, _, error = rdm(*asked(root, model, tmp_path / "d"), "--strength", 0.5)
    assert code == 2
    assert "a strength needs the picture to start from: give --start IMAGE" in error


def test_noise_is_turned_to_another_seed(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    turned = ("--towards", 1, "--fraction", 1.0, "--set", "eta=0")
    assert rdm(*asked(root, model, tmp_path / "out"), *turned)[0] == 0
    first, second = (Image.open(tmp_path / "out" / f"0000{n}.png").tobytes() for n in (0, 1))
    assert first == second


def test_a_printed_request_asks_for_the_same_again(
    rdm: Command, root: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["sample", "--model", str(model), "--database", str(root), "--text", "owl"]
    ask += ["--seeds", "0-2", "--pool", "6", "--weight", "3=2", "--tokens", "query+neighbors"]
    ask += ["--exclude-photograph", "p2.jpg", "--neighbor", "9", "--negative", "a dog"]
    ask += ["--set", "num_steps=1"]
    assert run([*ask, "--print-request"]) == 0
    printed = tmp_path / "request.json"
    printed.write_text(capsys.readouterr().out)
    assert run(["sample", "--request", str(printed), "--print-request"]) == 0
    assert capsys.readouterr().out == printed.read_text()

    assert rdm(*ask, "--out", tmp_path / "asked")[0] == 0
    assert rdm("sample", "--request", printed, "--out", tmp_path / "sent")[0] == 0
    # The same folder may be gone on with: nothing of what decides pictures differs.
    code, result, _ = rdm("sample", "--request", printed, "--out", tmp_path / "asked")
    assert (code, result["drawn"]) == (0, 0)
    for name in ("00000.png", "00001.png", "00002.png"):
        pictures = [(tmp_path / out / name).read_bytes() for out in ("asked", "sent")]
        assert pictures[0] == pictures[1]


def test_options_change_the_request_of_a_file(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"texts": ["owl"], "seeds": "0-9", "settings": {"k": 3, "num_steps": 7}}')
    given = ("--model", model, "--database", root, "--request", file, "--seeds", 4, "-k", 2)
    code, result, _ = rdm("sample", *given, "--dry-run")
    request = result["request"]
    assert (code, result["pictures"]) == (0, 1)
    assert (request["texts"], request["seeds"]) == (["owl"], "4")
    assert (request["settings"]["k"], request["settings"]["num_steps"]) == (2, 7)
    version = RetrievalDatabase.open(str(root)).version.number
    expected = {"name": str(root), "weight": 1.0, "version": version}
    assert request["retrieval"]["databases"] == [expected]


def test_two_databases_share_a_pictures_neighbors(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other=1"
    shutil.copytree(root, other)
    given = ("--database", f"{root}=3", "--database", other, "-k", 4, "--seeds", 0, *QUICK)
    out = tmp_path / "out"
    assert rdm("sample", "--model", model, "--text", "owl", *given, "--out", out)[0] == 0
    (row,) = rows(out)
    homes = [Path(neighbor["database"]).name for neighbor in row["neighbors"]]
    assert sorted(homes) == sorted([root.name] * 3 + ["other=1"])
    assert "neighbor" in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--text", ""), 2, "the text is empty"),
        (("--text", "x" * 10_000), 2, "the text has 10,000 characters"),
        (("--text", "owl", "-k", 99), 1, "k = 99, but the database has 12 patches"),
        (("--text", "owl", "-k", 9, "--exclude-photograph", "p0.jpg", "--exclude-photograph",
          "p1.jpg"), 2, "what is excluded leaves 8 of 12 patches"),
        (("--text", "owl", "--exclude-author", "nobody"), 2, "no patch has it"),
        (("--text", "owl", *(f"--weight={i}=0" for i in range(12))), 2, "are 0, so nothing"),
        (("--text", "owl", "--weight", "3"), 2, "is no weight of a patch"),
        (("--text", "owl", "--weight", "3=9"), 2, "less than or equal to 4"),
        (("--text", "owl", "--neighbor", "99"), 1, "patch ids run from 0 to 11"),
        (("--patch", "owl"), 2, "'owl' is no patch"),
        (("--text", "owl", "--negative-scale", 2), 2, "a negative names texts or patches"),
        (("--text", "owl", "--guidance", 2, "--guidance-weight", 1), 2, "both given"),
        (("--image", "pyproject.toml"), 1, "the picture cannot be read"),
        (("--image", "nothing.png"), 1, "the picture does not exist"),
        (("--unconditional",), 1, "p_D is not known"),
        ((), 2, "nothing to sample"),
    ],
    ids=lambda value: " ".join(map(str, value))[:30] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_bad_input_is_refused_and_nothing_is_written(
    rdm: Command,
    root: Path,
    model: Path,
    tmp_path: Path,
    flags: tuple[Any, ...],
    code: int,
    message: str,
) -> None:
    out = tmp_path / "out"
    given = ("--model", model, "--database", root, "--seeds", 0, "--set", "num_steps=1")
    found, _, error = rdm("sample", *given, "--out", out, *flags)
    assert (found, message in error, "fix: " in error) == (code, True, True), error
    assert not list(out.glob("*")) if out.exists() else True


def test_the_result_names_the_sheet_and_says_how_many_pictures_a_second(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    given = ("sample", "--model", model, "--database", root, "--patch", 3, "--out", tmp_path / "a",
             *QUICK)  # fmt: skip
    code, found, _ = rdm(*given)
    assert code == 0
    assert found["pictures_per_second"] > 0
    assert Path(found["contact_sheet"]) == tmp_path / "a" / "contact.png"
    again = rdm(*given)[1]
    assert (again["drawn"], "pictures_per_second" in again) == (0, False)
    code, _, error = rdm(*given, "--dask", 0)
    assert (code, "no worker would draw" in error) == (2, True)


def test_a_removed_patch_is_refused_by_name(
    rdm: Command, root: Path, model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "db"
    shutil.copytree(root, copy)
    (tmp_path / "gone").write_text("3\n")
    removed = rdm("database", "update", "--root", copy, "--delete-patches", tmp_path / "gone",
                  "--only-delete", "--dask", "inline")  # fmt: skip
    assert removed[0] == 0, removed
    given = ("--model", model, "--database", copy, "--out", tmp_path / "out")
    for flags in (
        ("--patch", 3),
        ("--text", "owl", "--neighbor", 3),
        ("--text", "a", "--weight", "3=2"),
    ):
        code, _, error = rdm("sample", *given, *flags)
        assert (code, "patch 3 was deleted" in error) == (1, True), error
    assert not (tmp_path / "out").exists()


def test_a_request_of_the_future_is_refused(rdm: Command, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    for text, message in (
        ('{"format": "rdm.request/2"}', "the request has the format 'rdm.request/2'"),
        ('{"texts": ["owl"], "later": 1}', "a request has no field 'later'"),
    ):
        file.write_text(text)
        code, _, error = rdm("sample", "--model", model, "--request", file)
        assert (code, message in error, str(file) in error) == (2, True, True), error


def printed(capsys: pytest.CaptureFixture[str], *asked: object) -> dict[str, Any]:
    assert run([*map(str, asked), "--print-request"]) == 0
    return json.loads(capsys.readouterr().out)


def test_options_that_edit_reach_the_request(
    root: Path, model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["sample", "--model", model, "--database", root]
    photo = photos / "p0.jpg"
    turned = printed(
        capsys, *ask, "--text", "a", "--towards-text", "b", "--away-text", "c", "--fraction", 0.3
    )
    assert turned["turn"] == {"text": "b", "image": None, "away": "c", "fraction": 0.3}
    assert turned["start"] is None
    both = printed(
        capsys,
        *[*ask, "--text", "a", "--towards-image", photo, "--towards", 4, "--fraction", 0.25],
    )
    assert (both["turn"]["image"], both["turn"]["fraction"]) == (str(photo), 0.25)
    assert (both["start"]["towards"], both["start"]["fraction"]) == (4, 0.25)
    wider = printed(capsys, *ask, "--text", "a", "--start", photo, "--outpaint", 6)
    assert wider["start"]["outpaint"] == 6


def test_an_inversion_without_a_query_reconstructs_the_picture(
    root: Path, model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / "p0.jpg"
    ask = ["sample", "--model", model, "--database", root, "--start", photo, "--invert"]
    alone = printed(capsys, *ask)
    assert alone["images"] == [str(photo)]
    assert (alone["settings"]["eta"], alone["settings"]["guidance_scale"]) == (0.0, 1.0)
    led = printed(capsys, *ask, "--guidance", 3)
    assert led["settings"]["guidance_scale"] == 3.0
    asked_for = printed(capsys, *ask, "--text", "a")
    assert (asked_for["images"], asked_for["settings"]["guidance_scale"]) == ([], 2.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--outpaint", 3), "give --start IMAGE"),
        (("--invert",), "give --start IMAGE"),
        (("--away-text", "b"), "--towards-text"),
        (("--towards-text", " "), "the text is empty"),
        (("--fraction", 0.3), "give --towards"),
        (("--start", "gone.png", "--invert", "--set", "eta=0.5"), "eta=0"),
        (("--c2pa-cert", "chain.pem"), "both --c2pa-cert and --c2pa-key"),
    ],
)
def test_half_an_edit_is_a_usage_error_that_leaves_no_folder(
    rdm: Command,
    root: Path,
    model: Path,
    tmp_path: Path,
    flags: tuple[object, ...],
    words: str,
) -> None:
    out = tmp_path / "out"
    ask = ["sample", "--model", model, "--database", root, "--text", "a", "--out", out]
    code, _, error = rdm(*ask, *flags)
    assert code == 2
    assert words in " ".join(error.split())
    assert not out.exists()
