"""The flow `train` when its job crashes or is cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_FLOW = """
import json, sys
import open_clip
from prefect.testing.utilities import prefect_test_harness
from flows.train import train
open_clip.add_model_config(sys.argv[2])
with prefect_test_harness(server_startup_timeout=120):
    from prefect.artifacts import Artifact
    result = train(**json.loads(sys.argv[1]))
    shown = {key: Artifact.get(key) for key in ("training", "training-samples")}
    print(json.dumps({"step": result.step, **{key: found.data for key, found in shown.items()}}))
"""
SETTINGS = [
    "checkpoint_every=5",
    "log_every=1",
    "batch_size=4",
    "num_ranks=2",
    "objective.network.block_out_channels=[16, 32]",
    "objective.network.attention_levels=[false, true]",
    "objective.network.norm_num_groups=8",
    "objective.network.head_dim=8",
    "objective.network.cross_attention_dim=16",
]


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes], tiny_encoder: str
) -> dict[str, str]:
    """A database, and photographs to train on."""
    from rdm.compute import ComputeConfig
    from rdm.database.building.builder import BuildConfig, DatabaseBuilder
    from rdm.database.building.jobs import run_build
    from rdm.sources import CropConfig

    root = tmp_path_factory.mktemp("flow")
    for name, first in (("database", 0), ("queries", 100)):
        (root / name).mkdir()
        for number in range(16):
            (root / name / f"{name}{number:02d}.jpg").write_bytes(
                encoded(first + number, size=(300, 300))
            )
    crop = CropConfig(frame_size=40, patch_size=32, min_patches=2, max_patches=2)
    build = BuildConfig(source=f"folder://{root}/database", encoder=tiny_encoder, crop=crop)
    run_build(DatabaseBuilder(str(root / "db"), build), ComputeConfig(dask="inline"))
    return {
        "database": str(root / "db"),
        "queries": f"folder://{root}/queries",
        "cache": str(root / "cache"),
    }


@pytest.fixture
def start(
    inputs: dict[str, str], tiny_encoder: str
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts the flow in a process group that knows the encoder and does not
    outlive the test.

    A flow that is terminated leaves the harness's server behind.
    """
    weights = Path(tiny_encoder.removeprefix("open_clip:tiny-clip/"))
    started: list[subprocess.Popen[str]] = []

    def begin(out: Path, **parameters: object) -> subprocess.Popen[str]:
        started.append(
            _start({**inputs, "out": str(out), **parameters}, weights.with_name("tiny-clip.json"))
        )
        return started[-1]

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _start(parameters: dict[str, object], encoder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _FLOW, json.dumps({**parameters, "dask": "inline"}), str(encoder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
    )


def _ranks(out: Path) -> list[int]:
    # the ranks, and not DeepSpeed's launcher
    pattern = f"^[^ ]+ -u -m rdm.training.job.rank .*{out}"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    from rdm.training.stats import read_stats

    deadline = time.monotonic() + 300
    while not any(row.step >= step for row in read_stats(out)):
        assert process.poll() is None, "the flow ended before its job could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_that_crashes_is_started_again_and_resumes(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(out, overrides=[*SETTINGS, "max_steps=40"])
    _wait_for_step(process, out, 7)
    os.kill(_ranks(out)[-1], signal.SIGKILL)
    shown = process.communicate(timeout=400)[0]
    assert process.returncode == 0
    found = json.loads(shown.strip().split("\n")[-1])
    assert found["step"] == 40
    assert "rdm-tiny: finished" in found["training"]
    assert found["training-samples"].startswith("data:image/png;base64,")
    # each start of a machine says what its ranks see
    assert (out / "launcher.log").read_text().count("ranks of ") == 2


def test_a_first_stage_trains_on_the_photographs_alone(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    overrides = [
        "max_steps=2",
        "batch_size=4",
        "num_ranks=1",
        "objective.start=random",
        "objective.photographs.held_out_fraction=0.3",
        "objective.adversarial.weight=0",
    ]
    process = start(out, recipe="autoencoder-kl-f4", database=None, cache=None, overrides=overrides)
    shown = process.communicate(timeout=400)[0]
    assert process.returncode == 0
    assert json.loads(shown.strip().split("\n")[-1])["step"] == 2
    assert (out / "model" / "diffusion_pytorch_model.safetensors").exists()


def test_cancelling_ends_every_process_of_the_job(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(out, overrides=[*SETTINGS, "max_steps=100000"])
    deadline = time.monotonic() + 300
    while len(_ranks(out)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # what a Prefect worker sends to a run that is cancelled
    assert process.wait(timeout=120) != 0
    deadline = time.monotonic() + 30
    while _ranks(out):
        assert time.monotonic() < deadline, "ranks outlived the flow"
        time.sleep(0.2)
