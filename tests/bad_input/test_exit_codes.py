"""What the command line answers to input that cannot be used: an exit code, and what, where and how
to fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.cli.main import run


@pytest.fixture
def rdm(capsys: pytest.CaptureFixture[str], tiny_encoder: str) -> Callable[..., tuple[int, str]]:
    """Return `rdm(*arguments)`, which runs a command and returns its exit code and what it wrote to
    standard error."""

    def call(*arguments: object) -> tuple[int, str]:
        code = run([str(argument) for argument in arguments])
        return code, " ".join(capsys.readouterr().err.split())  # long lines are wrapped

    return call


@pytest.fixture
def build(
    rdm: Callable[..., tuple[int, str]], tmp_path: Path, tiny_encoder: str
) -> Callable[..., tuple[int, str]]:
    """Return `build(source, *settings)`: `rdm database build` of tmp_path / "db"."""

    def call(source: object, *settings: str) -> tuple[int, str]:
        fixed = (f"encoder={tiny_encoder}", "crop.frame_size=40", "crop.patch_size=24", *settings)
        options = [word for setting in fixed for word in ("--set", setting)]
        return rdm(
            "database",
            "build",
            "--root",
            tmp_path / "db",
            "--source",
            source,
            "--dask",
            "inline",
            *options,
        )

    return call


def break_every_third(photos: Path) -> None:
    for number in range(0, 12, 3):
        (photos / f"p{number:02d}.jpg").write_bytes(b"words")


def test_good_photographs_exit_with_zero_twice(
    build: Callable[..., tuple[int, str]], photos: Path
) -> None:
    assert build(f"folder://{photos}")[0] == 0
    assert build(f"folder://{photos}")[0] == 0


def test_source_that_does_not_exist(build: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, message = build(f"folder://{tmp_path}/none")
    assert code == 1
    assert "the folder does not exist" in message
    assert not (tmp_path / "db" / "manifest.json").exists()


def test_unknown_scheme(build: Callable[..., tuple[int, str]]) -> None:
    code, message = build("gopher://photos")
    assert code == 2
    assert "samples://, folder://, webdataset://" in message


def test_plain_path_as_source(build: Callable[..., tuple[int, str]], photos: Path) -> None:
    code, message = build(photos)
    assert code == 2
    assert "did you mean folder://" in message


def test_empty_folder(build: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    code, message = build(f"folder://{tmp_path}/none")
    assert code == 1
    assert "the source is empty" in message


def test_every_third_picture_broken_fails_and_is_partial_when_allowed(
    build: Callable[..., tuple[int, str]], photos: Path
) -> None:
    break_every_third(photos)
    code, message = build(f"folder://{photos}")
    assert code == 1
    assert "only 8 of 12 pictures are usable: 4 not a picture" in message
    assert build(f"folder://{photos}", "min_success_rate=0.5")[0] == 3


@pytest.mark.parametrize(
    "command",
    [
        ["database", "status"],
        ["database", "verify"],
        ["database", "update"],
        pytest.param(
            ["neighbors", "build", "--queries", "folder:///", "--name", "x", "--dask", "inline"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_root_that_is_no_database(
    rdm: Callable[..., tuple[int, str]], photos: Path, command: list[str]
) -> None:
    if "--queries" in command:
        command = [*command[:3], f"folder://{photos}", *command[4:]]
    code, message = rdm(*command, "--root", photos)
    assert code == 1
    assert "the folder is not a retrieval database: it holds p00.jpg" in message


def test_missing_root(rdm: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, message = rdm("database", "status", "--root", tmp_path / "none")
    assert code == 1
    assert "this folder is not a retrieval database" in message


def test_root_that_is_a_file(
    rdm: Callable[..., tuple[int, str]],
    build: Callable[..., tuple[int, str]],
    photos: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "db").write_bytes(b"")
    assert rdm("database", "status", "--root", tmp_path / "db")[0] == 1
    assert build(f"folder://{photos}")[0] == 1


def test_root_with_an_unknown_protocol(rdm: Callable[..., tuple[int, str]]) -> None:
    assert rdm("database", "status", "--root", "gopher://db")[0] == 2


def test_another_encoder(
    build: Callable[..., tuple[int, str]], photos: Path, make_encoder: Callable[[int], str]
) -> None:
    build(f"folder://{photos}")
    code, message = build(f"folder://{photos}", f"encoder={make_encoder(1)}")
    assert code == 1
    assert "built with another encoder" in message


@pytest.mark.parametrize(
    "setting",
    ["nonsense=1", "crop.patch_size=9000", "images_per_shard=0", "encoder", "encoder=none"],
)
def test_setting_that_makes_no_sense(
    build: Callable[..., tuple[int, str]], photos: Path, setting: str
) -> None:
    assert build(f"folder://{photos}", setting)[0] == 2


def test_unknown_image_to_delete(
    build: Callable[..., tuple[int, str]],
    rdm: Callable[..., tuple[int, str]],
    photos: Path,
    tmp_path: Path,
) -> None:
    build(f"folder://{photos}")
    (tmp_path / "ids.txt").write_text("p01.jpg\nnever.jpg\n")
    code, message = rdm(
        "database",
        "update",
        "--root",
        tmp_path / "db",
        "--delete-images",
        tmp_path / "ids.txt",
        "--dask",
        "inline",
    )
    assert code == 1
    assert "no image never.jpg" in message
    assert (
        rdm(
            "database",
            "update",
            "--root",
            tmp_path / "db",
            "--delete-images",
            tmp_path / "none.txt",
        )[0]
        == 2
    )


def test_flipped_byte_is_named_by_verify(
    build: Callable[..., tuple[int, str]],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build(f"folder://{photos}")
    path = tmp_path / "db" / "img_emb" / "img_emb_0000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert run(["database", "verify", "--root", str(tmp_path / "db"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"] == [
        "img_emb/img_emb_0000.npy differs from its recorded digest"
    ]


def test_update_after_photographs_vanished_is_fine(
    build: Callable[..., tuple[int, str]],
    photos: Path,
    tmp_path: Path,
    rdm: Callable[..., tuple[int, str]],
) -> None:
    build(f"folder://{photos}")
    (photos / "p03.jpg").unlink()
    assert rdm("database", "update", "--root", tmp_path / "db", "--dask", "inline")[0] == 0
    shutil.rmtree(photos)
    code, message = rdm("database", "update", "--root", tmp_path / "db", "--dask", "inline")
    assert code == 1
    assert "the folder does not exist" in message


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["database", "build"], ["database", "status", "--rot", "x"]]
)
def test_command_that_cannot_be_understood(
    rdm: Callable[..., tuple[int, str]], arguments: list[str]
) -> None:
    assert rdm(*arguments)[0] == (2 if arguments else 0)
