"""`rdm train --dry-run`: refuses what the training would refuse, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rdm.cli.main import run

LATENTS = ("--recipe", "rdm-tiny", "--cache", "nowhere", "--database", "nowhere")


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("one slots=2\n")
    return path


def plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object
) -> tuple[int, str, str]:
    """Return exit code, standard output and error of a dry run; its folder stays away."""
    words = ["train", "--out", str(tmp_path / "run"), "--dry-run", "--json", *map(str, arguments)]
    code = run(words)
    said = capsys.readouterr()
    assert not (tmp_path / "run").exists()
    return code, said.out, " ".join(said.err.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            (*LATENTS, "--set", "batch_size=33", "--set", "num_ranks=2"),
            1,
            "cannot be shared by 2 ranks",
        ),
        (LATENTS, 1, "there is no finished latent cache here"),
        (("--recipe", "rdm-tiny", "--cache", "nowhere"), 2, "needs --database"),
        (("--recipe", "clip-lite"), 2, "needs --source"),
        (
            ("--recipe", "autoencoder-kl-f4", "--source", "folder:///no/where"),
            1,
            "the folder does not exist",
        ),
    ],
)
def test_what_the_training_would_refuse_is_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    found = plan(capsys, tmp_path, *arguments)
    assert (found[0], message in found[2]) == (code, True), found


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--set", "num_ranks=3"), "num_ranks is 3, but the machines of the hostfile have 2 slots"),
        (("--master-port", "70000"), "--master-port. Must be from 1 to 65535"),
        (("--remote-shell", "ssh"), "does not contain {host}"),
    ],
)
def test_options_that_do_not_fit_the_hostfile_are_usage_errors(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    hostfile: Path,
    option: tuple[str, str],
    message: str,
) -> None:
    code, _, error = plan(capsys, tmp_path, *LATENTS, "--hostfile", hostfile, *option)
    assert (code, message in error) == (2, True), error


def test_the_port_where_ranks_meet_can_be_chosen(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hostfile: Path
) -> None:
    arguments = (
        "--recipe",
        "clip-lite",
        "--source",
        f"webdataset://{tmp_path}",
        "--hostfile",
        hostfile,
    )
    code, shown, _ = plan(capsys, tmp_path, *arguments, "--master-port", 29777)
    assert code == 0
    assert "--master_port=29777" in json.loads(shown)["commands"][0]
