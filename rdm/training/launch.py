"""Start a training job under the `deepspeed` launcher, follow it, and turn its end into a result or a clear error."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rdm.errors import TrainingError
from rdm.progress import Tracker, tracking
from rdm.storage.files import storage_errors
from rdm.training.recipes import TrainConfig, TrainInputs

POLL_SECONDS = 0.5
LOG = "launcher.log"


def run_training(config: TrainConfig, inputs: TrainInputs) -> dict[str, Any]:
    """Train until `max_steps` and return the last line of statistics; a stopped run resumes, a finished one returns.

    The job is its own process group, and ends when this process does.

    Raises:
        TrainingError: the folder holds another run, or a rank failed; the last checkpoint then stands.
    """
    from rdm.training.assemble import open_run
    from rdm.training.loop import MODEL, read_stats, run_digest
    from rdm.training.worker import ERROR_FILE, RUN_FILE, read_run, write_run

    out = Path(inputs.out)
    if (out / RUN_FILE).exists() and (recorded := read_run(out)) and run_digest(recorded[0]) != run_digest(config):
        raise TrainingError(
            "the folder holds a run with another configuration",
            where=out,
            fix="give --out a new folder, or the settings in its run.json",
        )
    stats = read_stats(out)
    if (out / MODEL).is_dir() and stats and stats[-1]["step"] >= config.max_steps:
        return stats[-1]
    with storage_errors(out):
        write_run(out, config, inputs)
    open_run(config, inputs)  # prepares what has to be prepared once, and refuses bad inputs before a job starts
    (out / ERROR_FILE).unlink(missing_ok=True)
    with tracking("train", config.max_steps, "steps", stats[-1]["step"] if stats else 0) as tracker:
        code = _follow(config, out, tracker)
    if code != 0:
        raise _failure(out, code)
    return read_stats(out)[-1]


def launch_command(config: TrainConfig, out: Path) -> list[str]:
    """Return the command line of the launcher on this machine."""
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_accelerators",
        str(num_ranks(config)),
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(_free_port()),
        "--module",
        "rdm.training.worker",
        "--out",
        str(out),
    ]


def num_ranks(config: TrainConfig) -> int:
    """Return how many ranks train on this machine.

    Raises:
        TrainingError: more accelerators were asked for than there are.
    """
    import torch

    accelerators = torch.cuda.device_count()
    if accelerators and (config.num_ranks or 0) > accelerators:
        raise TrainingError(
            f"num_ranks is {config.num_ranks}, but there are {accelerators} accelerators",
            fix=f"--set num_ranks={accelerators}",
        )
    return config.num_ranks or accelerators or min(2, _num_cores())


def _follow(config: TrainConfig, out: Path, tracker: Tracker) -> int:
    from rdm.training.loop import read_stats

    with open(out / LOG, "ab") as log:
        process = subprocess.Popen(
            launch_command(config, out),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(config),
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                if stats := read_stats(out):
                    last = stats[-1]
                    tracker.set(last["step"], f"loss {last['loss']:.4f}, {last['samples_per_second']:.0f} samples/s")
        finally:
            _end(process)
    return process.returncode


def _environment(config: TrainConfig) -> dict[str, str]:
    import torch

    from rdm.training.worker import OWNER_VARIABLE

    ranks = num_ranks(config)
    environment = {
        **os.environ,
        OWNER_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, _num_cores() // ranks)),
    }
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    for sign, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sign)
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return


def _failure(out: Path, code: int) -> TrainingError:
    from rdm.training.worker import ERROR_FILE

    error = out / ERROR_FILE
    if error.exists():
        found = json.loads(error.read_text(encoding="utf-8"))
        return TrainingError(found["what"], where=found["where"], fix=found["fix"])
    lines = (out / LOG).read_text(encoding="utf-8", errors="replace").strip().split("\n")
    cause = next((line for line in reversed(lines) if "Error" in line), lines[-1])
    return TrainingError(
        f"the training job ended with code {code}: {cause.strip()[:300]}",
        where=out / LOG,
        fix="mend the cause and run the same command again: it resumes from the last checkpoint",
    )


def _num_cores() -> int:
    """Return the cores that this process may use, which a container or `taskset` may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
