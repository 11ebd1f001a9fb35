"""Two machines: network namespaces with a wire between them, one of which dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_jobs import Prepared, ranks_of, start_job, wait_for_step, weights_of

from rdm.errors import TrainingError
from rdm.training.config import TrainConfig
from rdm.training.job.hostfile import Cluster
from rdm.training.job.launch import run_training
from rdm.training.stats import read_stats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())
    return done.stdout


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other through a pair of virtual interfaces, and
    nothing else."""
    names = (f"rdm-a-{os.getpid()}", f"rdm-b-{os.getpid()}")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip(
            "link",
            "add",
            "rdm0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "rdm0",
            "netns",
            names[1],
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            for words in (
                ["addr", "add", f"{address}/24", "dev", "rdm0"],
                ["link", "set", "rdm0", "up"],
            ):
                _ip("-n", name, *words)
            _ip("-n", name, "link", "set", "lo", "up")
    except OSError as error:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        pytest.skip(f"network namespaces are not permitted here: {error}")
    yield names
    for name in names:
        for pid in _processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ip("netns", "del", name)


@pytest.fixture
def cluster(machines: tuple[str, str], tmp_path: Path) -> Cluster:
    """Both machines, one rank each."""
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in machines))
    return Cluster.from_hostfile(hostfile, ADDRESSES[0], "ip netns exec {host}")


def _processes(name: str) -> list[int]:
    return [int(pid) for pid in _ip("netns", "pids", name).split()]


def _bytes_sent(name: str) -> int:
    shown = _ip("netns", "exec", name, "cat", "/sys/class/net/rdm0/statistics/tx_bytes")
    return int(shown)


def test_a_machine_dies_and_the_same_command_goes_on_to_the_same_bits(
    cluster: Cluster,
    machines: tuple[str, str],
    prepared: Prepared,
    tiny_recipe: TrainConfig,
    tmp_path: Path,
) -> None:
    config = tiny_recipe.with_overrides(
        ["max_steps=30", "checkpoint_every=5", "grids_per_decade=0"]
    )
    run_training(config, prepared.inputs(tmp_path / "undisturbed"), cluster)

    out = tmp_path / "run"
    process = start_job(config, prepared.inputs(out), cluster)
    wait_for_step(process, out, 8)
    assert _processes(machines[1])
    for pid in _processes(machines[1]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.wait(90) != 0
    deadline = time.monotonic() + 30
    while _processes(machines[0]) or ranks_of(out):
        assert time.monotonic() < deadline, "the other machine trains on alone"
        time.sleep(0.2)
    assert not (out / "model").exists()

    run_training(config, prepared.inputs(out), cluster)
    assert weights_of(out) == weights_of(tmp_path / "undisturbed")
    assert [row.loss for row in read_stats(out)] == [
        row.loss for row in read_stats(tmp_path / "undisturbed")
    ]
    # gradients go over the wire
    assert min(_bytes_sent(name) for name in machines) > len(weights_of(out))


def test_a_machine_that_cannot_be_reached_is_a_clear_error(
    prepared: Prepared, tiny_recipe: TrainConfig, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("rdm-nowhere slots=2\n")
    cluster = Cluster.from_hostfile(tmp_path / "hosts", None, "ip netns exec {host}")
    with pytest.raises(TrainingError, match="rdm-nowhere"):
        run_training(tiny_recipe, prepared.inputs(tmp_path / "run"), cluster)
