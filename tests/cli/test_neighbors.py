"""`rdm neighbors build` and `contamination` on the command line: options, exit codes, JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., tuple[int, dict[str, Any], str]]


def test_contamination_is_an_exit_code_until_it_is_excluded(
    rdm: Command, photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    root, source = tmp_path / "db", f"folder://{photos}"
    sets = (f"encoder={tiny_encoder}", "crop.frame_size=40", "crop.patch_size=24", "images_per_shard=5")
    options = [word for setting in sets for word in ("--set", setting)]
    assert rdm("database", "build", "--root", root, "--source", source, "--dask", "inline", *options)[0] == 0
    build = ("neighbors", "build", "--root", root, "--queries", source, "--dask", "inline", "--set", "k_stored=4")
    ask = ("neighbors", "contamination", "--root", root, "--threshold", 1)
    assert rdm(*build, "--name", "same")[0] == 0
    code, found, _ = rdm(*ask, "--name", "same")
    assert (code, found["num_photographs"], found["same_photographs"]) == (1, 12, 12)
    assert {pair["match"] for pair in found["list"][:12]} == {"bytes"}
    assert not any(pair["excluded"] for pair in found["list"])
    code, built, _ = rdm(*build, "--name", "others", "--exclude-self", "--exclude-above", "0.9999")
    assert code == 0
    assert built["excluded"] > 0
    code, found, _ = rdm(*ask, "--name", "others", "--gallery", tmp_path / "pairs.html")
    assert (code, found["same_photographs"], found["pairs_not_excluded"]) == (0, 12, 0)
    assert (tmp_path / "pairs.html").exists()
