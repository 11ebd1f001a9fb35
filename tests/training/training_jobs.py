"""Training jobs as a user starts them, to be watched and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.job.hostfile import Cluster
from rdm.training.objectives.generative import GenerativeConfig
from rdm.training.stats import read_stats

_TRAIN = """
import json, sys
from rdm.training.job.hostfile import Cluster
from rdm.training.job.launch import run_training
from rdm.training.config import TrainConfig, TrainInputs
config, inputs, cluster = json.loads(sys.argv[1])
run_training(
    TrainConfig.model_validate(config),
    TrainInputs.model_validate(inputs),
    Cluster.model_validate(cluster),
)
"""


@dataclass(frozen=True)
class Prepared:
    """Where the inputs of a run lie."""

    database: str
    cache: str

    def inputs(self, out: Path) -> TrainInputs:
        """Return the inputs of a run that writes to `out`."""
        return TrainInputs(out=str(out), cache=self.cache, database=self.database)


def generative(config: TrainConfig) -> GenerativeConfig:
    """Return the objective of a run that trains a generator, not an encoder or a first stage."""
    assert isinstance(config.objective, GenerativeConfig)
    return config.objective


def start_job(
    config: TrainConfig, inputs: TrainInputs, cluster: Cluster | None = None
) -> subprocess.Popen[bytes]:
    """Start a training in a process of its own."""
    parts = (config, inputs, cluster or Cluster())
    arguments = json.dumps([part.model_dump(mode="json") for part in parts])
    return subprocess.Popen([sys.executable, "-c", _TRAIN, arguments], start_new_session=True)


def wait_for_step(process: subprocess.Popen[bytes], out: Path, step: int) -> None:
    """Wait until the job has recorded a step."""
    deadline = time.monotonic() + 300
    while not any(row.step >= step for row in read_stats(out)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_all(process: subprocess.Popen[bytes], out: Path) -> None:
    """Kill the launching process and the ranks at once, as a machine that loses power would."""
    for pid in [process.pid, *ranks_of(out)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def ranks_of(out: Path) -> list[int]:
    """Return the processes of a run's ranks and of DeepSpeed's launcher."""
    command = ["pgrep", "-f", f"rdm.training.job.rank.*{out}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def weights_of(out: Path) -> bytes:
    """Return the exported weights."""
    return (out / "model" / "network" / "diffusion_pytorch_model.safetensors").read_bytes()
