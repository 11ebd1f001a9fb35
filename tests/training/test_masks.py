"""Device masks: what ranks receive of them, from the real launcher, and the rules by themselves."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_jobs import Prepared, start_job

from rdm.compute.masks import (
    LAUNCHER_MASKS,
    describe_masks,
    device_masks,
    inherited_masks,
    machine_id,
    restored_masks,
    unfulfilled_masks,
    without_other_jobs,
)
from rdm.errors import TrainingError
from rdm.recipes import recipe_config
from rdm.training.config import TrainConfig
from rdm.training.engine.training_device import device_type, require_device
from rdm.training.job.hostfile import Cluster, Machine
from rdm.training.job.launch import LOG, orders_of
from rdm.training.job.machine import environment

OTHER_JOB = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "none", "MASTER_ADDR": "10.9.9.9",
    "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "RDM_NODE_RANK": "7",
}  # fmt: skip


def run_env(words: list[str], given: dict[str, str]) -> dict[str, str]:
    """Return the environment that a command after these words has."""
    done = subprocess.run(
        [*words, "env", "-0"], env={"PATH": os.environ["PATH"], **given}, capture_output=True
    )
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)


@pytest.mark.parametrize(
    "value",
    ["5", "5,3", "GPU-8f2c,GPU-1", "MIG-4b/7/0", "5,5", "-1", "", "NoDevFiles", "a b"],
    ids=repr,
)
def test_a_mask_that_the_launcher_overwrote_is_as_it_was(value: str) -> None:
    before = {"CUDA_VISIBLE_DEVICES": value}
    found = run_env(restored_masks(before), dict.fromkeys(LAUNCHER_MASKS, "0,1"))
    assert device_masks(found) == before


def test_a_mask_that_was_not_set_is_not_set() -> None:
    assert device_masks(run_env(restored_masks({}), dict.fromkeys(LAUNCHER_MASKS, "0,1"))) == {}


def test_masks_that_the_launcher_leaves_alone_go_through() -> None:
    kept = {
        "ROCR_VISIBLE_DEVICES": "2",
        "HIP_VISIBLE_DEVICES": "1,0",
        "ONEAPI_DEVICE_SELECTOR": "level_zero:1",
    }
    assert device_masks(run_env(restored_masks(kept), kept)) == kept


def test_every_mask_that_a_deepspeed_accelerator_sets_is_known() -> None:
    import importlib.util

    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "accelerator"
    methods = [
        node
        for path in folder.glob("*_accelerator.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "visible_devices_envs"
    ]
    names = {
        node.value
        for method in methods
        for node in ast.walk(method)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert "CUDA_VISIBLE_DEVICES" in names
    assert names <= set(LAUNCHER_MASKS)


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "-1,0", " "])
def test_a_mask_of_no_device_is_told_from_one_that_should_show_some(value: str) -> None:
    assert unfulfilled_masks({"CUDA_VISIBLE_DEVICES": value}) == ""
    given = {"CUDA_VISIBLE_DEVICES": "8", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert unfulfilled_masks(given) == "CUDA_VISIBLE_DEVICES=8"
    # of containers, whatever machine they run on
    assert unfulfilled_masks({"NVIDIA_VISIBLE_DEVICES": "all"}) == ""


def test_what_another_launcher_told_this_process_is_not_told_to_the_ranks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in OTHER_JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_OF_PUPPETS", "kept")
    config = recipe_config("rdm-tiny").with_overrides(["device=cpu", "num_ranks=2"])
    (orders,) = orders_of(config, Cluster(), tmp_path)
    found = environment(orders)
    assert not set(OTHER_JOB) & set(found)
    assert found["MASTER_OF_PUPPETS"] == "kept"
    assert without_other_jobs({"RANKING": "1", "WORLD_SIZE": "2"}) == {"RANKING": "1"}


def test_a_remote_shell_to_this_machine_gets_its_masks_and_another_machine_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (
        inherited_masks({"CUDA_VISIBLE_DEVICES": "5"}, machine_id())["CUDA_VISIBLE_DEVICES"] == "5"
    )
    assert "CUDA_VISIBLE_DEVICES" not in inherited_masks(
        {"CUDA_VISIBLE_DEVICES": "5"}, "elsewhere/1"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (
        inherited_masks({"CUDA_VISIBLE_DEVICES": "5"}, machine_id())["CUDA_VISIBLE_DEVICES"] == ""
    )


def test_no_gpu_under_a_mask_names_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_type(recipe_config("rdm-tiny")) == "cpu"
    with pytest.raises(TrainingError, match="finds no GPU") as refused:
        device_type(recipe_config("rdm-tiny").with_overrides(["device=cuda"]))
    assert refused.value.where == "CUDA_VISIBLE_DEVICES="


def test_a_rank_without_a_device_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert require_device(0, 1) == 0
    with pytest.raises(
        TrainingError, match=r"rank 1 .* 1 are visible under CUDA_VISIBLE_DEVICES=5"
    ) as refused:
        require_device(1, 1)
    assert "slots=1" in refused.value.fix


def ranks_environments(
    out: Path, process: subprocess.Popen[bytes], count: int
) -> list[dict[str, str]]:
    """Return the environments of a job's ranks, as the kernel has them, as soon as all are
    there."""
    command = [sys.executable, "-u", "-m", "rdm.training.job.rank", "--out", str(out)]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().decode().split("\0")[:-1] == command:
                    text = (entry / "environ").read_bytes().decode()
                    found.append(
                        dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
                    )
        if len(found) == count:
            return found
        assert process.poll() is None, (out / LOG).read_text()
        time.sleep(0.1)
    raise AssertionError("the ranks did not start")


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("shell", "given", "seen"),
    [
        ("", {"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "5"}),
        ("", {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": ""}),
        ("", {}, {}),
        ("", {"ROCR_VISIBLE_DEVICES": "3", "ZE_AFFINITY_MASK": "1.0"}, None),
        (
            "env X={host}",
            {"CUDA_VISIBLE_DEVICES": "GPU-8f2c"},
            {"CUDA_VISIBLE_DEVICES": "GPU-8f2c"},
        ),
        (
            "env CUDA_VISIBLE_DEVICES=7 X={host}",
            {"CUDA_VISIBLE_DEVICES": "5"},
            {"CUDA_VISIBLE_DEVICES": "7"},
        ),
        (
            "env -i PATH=/usr/bin:/bin X={host}",
            {"CUDA_VISIBLE_DEVICES": "5"},
            {"CUDA_VISIBLE_DEVICES": "5"},
        ),
    ],
)
def test_ranks_see_the_masks_of_where_they_were_started(
    shell: str,
    given: dict[str, str],
    seen: dict[str, str] | None,
    prepared: Prepared,
    tiny_recipe: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in device_masks(os.environ):
        monkeypatch.delenv(name)
    for name, value in {**OTHER_JOB, **given}.items():
        monkeypatch.setenv(name, value)
    cluster = (
        Cluster(machines=(Machine(host="localhost", slots=2),), remote_shell=shell)
        if shell
        else Cluster()
    )
    out = tmp_path / "run"
    process = start_job(tiny_recipe.with_overrides(["device=cpu"]), prepared.inputs(out), cluster)
    try:
        ranks = ranks_environments(out, process, 2)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    expected = given if seen is None else seen
    assert [device_masks(found) for found in ranks] == [expected, expected]
    assert sorted((found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) for found in ranks) == [
        ("0", "0", "2"), ("1", "1", "2"),
    ]  # fmt: skip
    assert {found["MASTER_ADDR"] for found in ranks} == {"127.0.0.1"}
    assert not any(name.startswith("TORCHELASTIC") for found in ranks for name in found)
    log = (out / LOG).read_text()
    assert f"see {describe_masks(expected) or 'all devices'}" in log
    assert "0,1" not in log
