"""Start a training job, follow it, and turn its end into a result or a clear error."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rdm import errors
from rdm.compute.machine import num_cores
from rdm.compute.masks import device_masks, machine_id, unfulfilled_masks
from rdm.errors import JobError, RdmError, TrainingError, UsageError
from rdm.progress import Tracker, tracking
from rdm.storage.files import storage_errors
from rdm.storage.locks import lock_file
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.job.hostfile import MASTER_PORT, Cluster
from rdm.training.job.job_errors import ERROR_FILE, read_error, record_error
from rdm.training.job.machine import Orders, command, end_group
from rdm.training.job.status import LOCK

if TYPE_CHECKING:
    from rdm.training.stats import StatsRow

POLL_SECONDS = 0.5
LOG = "launcher.log"


SHELL_FAILED = 255  # of ssh itself
OnProgress = Callable[[], object]

logger = logging.getLogger(__name__)


def run_training(
    config: TrainConfig,
    inputs: TrainInputs,
    cluster: Cluster | None = None,
    on_progress: OnProgress | None = None,
) -> StatsRow:
    """Train until `max_steps` and return the last statistics; a stopped run resumes.

    The job is its own process group on each machine, and ends when this process does.

    Args:
        config: the run's.
        inputs: where it reads and writes.
        cluster: machines; None: this one.
        on_progress: called whenever there are new lines of statistics.

    Raises:
        TrainingError: the folder holds another or a longer run, or a rank failed; the last
            checkpoint then stands.
        ConcurrentWriterError: another job trains in this folder.
    """
    from rdm.training.job.rank import write_run
    from rdm.training.job.status import exported_steps
    from rdm.training.stats import stats_of

    cluster = cluster or Cluster()
    out = Path(inputs.out)
    config = settled(config, inputs, cluster)
    # Finished before: a flow's retry starts nothing and writes nothing.
    if exported_steps(out) == config.max_steps:
        return stats_of(out, config.max_steps)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with lock_file(out / LOCK, "is training in this folder"):
        _prepare(config, inputs, cluster)
        write_run(out, config, inputs)
        _run_job(config, cluster, out, on_progress)
    return stats_of(out, config.max_steps)


def _run_job(
    config: TrainConfig, cluster: Cluster, out: Path, on_progress: OnProgress | None
) -> None:
    """Run the job to its end. Why it failed is written down, for whoever asks later."""
    from rdm.training.checkpoints import Checkpoints
    from rdm.training.job.devices import DEVICES

    # An error or a device of an earlier start would be taken for this one's.
    (out / ERROR_FILE).unlink(missing_ok=True)
    shutil.rmtree(out / DEVICES, ignore_errors=True)
    log_start = (out / LOG).stat().st_size if (out / LOG).exists() else 0
    done = max((checkpoint.step for checkpoint in Checkpoints(out, config).complete()), default=0)
    _warn_of_masks(config, cluster)
    try:
        with tracking("train", config.max_steps, "steps", done) as tracker:
            code = run_nodes(orders_of(config, cluster, out), cluster, out, tracker, on_progress)
        if code != 0:
            raise failure(out, code, log_start)
    except RdmError as error:
        # The status is asked for later, when this process is gone.
        record_error(out, error)
        raise


def _warn_of_masks(config: TrainConfig, cluster: Cluster) -> None:
    """Warn if device masks show no accelerator, so that the run is one on the CPU."""
    masks = unfulfilled_masks(os.environ)
    if masks and config.device == "auto" and not cluster.machines and _device(config) == "cpu":
        logger.warning("PyTorch finds no GPU under %s: training on the CPU", masks)


def orders_of(config: TrainConfig, cluster: Cluster, out: Path) -> list[Orders]:
    """Return the orders of every machine of a job, in the order of their node ranks.

    Raises:
        TrainingError: more accelerators were asked for than there are, or a device that is not
            there.
    """
    here = not cluster.machines
    slots = (num_ranks(config),) if here else tuple(machine.slots for machine in cluster.machines)
    alone = len(slots) == 1  # whichever machine it is, its ranks meet on its loopback interface
    address = cluster.master_address or ("127.0.0.1" if alone else cluster.machines[0].host)

    shared = {
        "out": str(out.absolute()),
        "directory": os.getcwd(),
        "slots": slots,
        "master_address": address,
        "master_port": cluster.master_port or (None if alone else MASTER_PORT),
        "device": _device(config) if here else config.device,  # the machines know what they have
        "pick_interface": not alone,
        "masks": device_masks(os.environ),
        "machine": machine_id(),
    }
    return [Orders(node_rank=number, **shared) for number in range(len(slots))]


def launch_commands(config: TrainConfig, cluster: Cluster, out: Path) -> list[str]:
    """Return for people what each machine will run; its environment decides on device masks."""
    prefixes = [cluster.shell_words(machine) for machine in cluster.machines] or [[]]
    orders = orders_of(config, cluster, out)
    commands = (command(own, os.environ) for own in orders)
    return [" ".join([*prefix, *words]) for prefix, words in zip(prefixes, commands, strict=True)]


def num_ranks(config: TrainConfig) -> int:
    """Return how many ranks train on this machine.

    Raises:
        TrainingError: more accelerators were asked for than there are, or a device that is not
            there.
    """
    import torch

    accelerators = torch.cuda.device_count() if _device(config) == "cuda" else 0
    if accelerators and (config.num_ranks or 0) > accelerators:
        raise TrainingError(
            f"num_ranks is {config.num_ranks}, but there are {accelerators} accelerators",
            fix=f"--set num_ranks={accelerators}",
        )
    return config.num_ranks or accelerators or min(2, num_cores())


def _device(config: TrainConfig) -> str:
    from rdm.training.engine.training_device import device_type

    return device_type(config)


def settled(config: TrainConfig, inputs: TrainInputs, cluster: Cluster) -> TrainConfig:
    """Return the configuration with the micro-batch size that the run began with.

    Raises:
        TrainingError: the folder holds another or a longer run, or the ranks cannot share the
            batch.
        UsageError: `num_ranks` and the hostfile disagree.
    """
    from rdm.training.checkpoints import run_digest
    from rdm.training.job.rank import RUN_FILE, read_run
    from rdm.training.loop import micro_batch

    if cluster.machines and config.num_ranks not in (None, cluster.num_ranks):
        raise UsageError(
            f"num_ranks is {config.num_ranks}, but the machines of the hostfile have "
            f"{cluster.num_ranks} slots",
            fix="leave num_ranks out: the slots decide",
        )
    out = Path(inputs.out)
    recorded = read_run(out)[0] if (out / RUN_FILE).exists() else None
    if recorded is not None and run_digest(recorded) != run_digest(config):
        raise TrainingError(
            "the folder holds a run with another configuration",
            where=out,
            fix="give --out a new folder, or the settings in its run.json",
        )
    _require_no_longer_run(config, out)
    size = micro_batch(
        config,
        cluster.num_ranks or num_ranks(config),
        recorded.micro_batch_size if recorded else None,
    )
    return config.model_copy(update={"micro_batch_size": size})


def _require_no_longer_run(config: TrainConfig, out: Path) -> None:
    """Refuse to call the weights of more steps those of `max_steps`."""
    from rdm.training.checkpoints import Checkpoints
    from rdm.training.job.status import exported_steps

    done = max(
        [exported_steps(out) or 0, *(found.step for found in Checkpoints(out, config).complete())]
    )
    if done > config.max_steps:
        raise TrainingError(
            f"the run in this folder has done {done} steps, more than max_steps, which is "
            f"{config.max_steps}",
            where=out,
            fix=f"--set max_steps={done} or more, or give --out a new folder",
        )


def _prepare(config: TrainConfig, inputs: TrainInputs, cluster: Cluster) -> None:
    """Prepare what has to be prepared once, and refuse bad inputs before a job starts."""
    from rdm.training.open_run import open_run

    _, objective = open_run(config, inputs)
    ranks = cluster.num_ranks or num_ranks(config)
    if objective.needs_whole_batch and config.micro_batch_size != config.batch_size // ranks:
        raise TrainingError(
            f"the loss of {config.recipe} compares the samples of a whole batch: it cannot "
            "accumulate gradients over "
            f"micro-batches of {config.micro_batch_size}",
            where=inputs.out,
            fix=f"--set micro_batch_size={config.batch_size // ranks}",
        )


def run_nodes(
    orders: Sequence[Orders],
    cluster: Cluster,
    out: Path,
    tracker: Tracker,
    on_progress: OnProgress | None = None,
) -> int:
    """Run the job to its end and return the first exit code that is not 0. No machine outlives
    another's failure.

    Args:
        orders: of each machine, in the order of the cluster.
        cluster: the machines; none: this one.
        out: folder of the run, with its log.
        tracker: shows the steps.
        on_progress: called whenever there are new lines of statistics.
    """
    prefixes = [cluster.shell_words(machine) for machine in cluster.machines] or [[]]
    nodes: list[subprocess.Popen[bytes]] = []

    with open(out / LOG, "ab") as log:
        try:
            # Orders go by standard input: a remote shell would take a command line apart.
            for prefix, own in zip(prefixes, orders, strict=True):
                nodes.append(_start(prefix, log))
                _send(nodes[-1], own)
            return _wait(nodes, cluster, out, tracker, on_progress)
        finally:
            for node in nodes:
                assert node.stdin is not None
                with suppress(BrokenPipeError):
                    node.stdin.close()  # the machine's ranks end with this
            # All are told before any is waited for, so that machines end at once.
            for node in nodes:
                _end(node)


def _start(prefix: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "rdm.training.job.machine"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _send(node: subprocess.Popen[bytes], orders: Orders) -> None:
    """Send a machine its orders; one that has ended already said why in the log."""
    assert node.stdin is not None
    with suppress(BrokenPipeError):
        node.stdin.write(orders.model_dump_json().encode() + b"\n")
        node.stdin.flush()


def _wait(
    nodes: Sequence[subprocess.Popen[bytes]],
    cluster: Cluster,
    out: Path,
    tracker: Tracker,
    on_progress: OnProgress | None,
) -> int:
    from rdm.training.job.devices import require_one_device
    from rdm.training.stats import last_stats

    # of an earlier start, which may have come further
    before = last_stats(out)
    seen = before.step if before is not None else 0
    while True:
        codes = [node.poll() for node in nodes]
        require_one_device(out, cluster.machines)
        if (last := last_stats(out)) is not None and last.step != seen:
            seen = last.step
            tracker.set(seen, last.words())
            if on_progress is not None:
                on_progress()
        # One failure ends the job: the other ranks would wait in a collective until it times out.
        failed = next((code for code in codes if code), None)
        if failed or None not in codes:
            return failed or 0
        time.sleep(POLL_SECONDS)


def _end(node: subprocess.Popen[bytes]) -> None:
    """Let a machine end its ranks, which takes a few seconds, and end what is left."""
    try:
        node.wait(30)
    except subprocess.TimeoutExpired:
        end_group(node)


def failure(out: Path, code: int, log_start: int) -> RdmError:
    """Return why a job ended: what a rank recorded, or else what its log says.

    Args:
        out: folder of the run.
        code: with which the job ended.
        log_start: bytes of the log that earlier starts wrote.
    """
    if (found := read_error(out)) is not None:
        kind = getattr(errors, found["kind"], TrainingError)
        return kind(found["what"], where=found["where"], fix=found["fix"])
    ending = _ending(code, out / LOG, log_start)
    mend = "mend the cause"
    if "EADDRINUSE" in ending:
        mend = "give a --master-port that is free on the first machine"
    return JobError(
        f"the training job {ending}",
        where=out / LOG,
        fix=f"{mend} and run the same command again: it resumes from the last checkpoint",
    )


def _ending(code: int, path: Path, log_start: int) -> str:
    """Return an exit code in words: signal 9 is -9, 247 or 137, by who reports it."""
    number = code - 128 if 128 < code < 160 else 256 - code & 255
    is_signal = code != SHELL_FAILED and number in set(signal.Signals)
    # the log has only the others' words, who miss the one that was killed
    if is_signal and number == signal.SIGKILL:
        return f"was killed by signal {number}, most likely for want of memory"
    with open(path, "rb") as log:
        log.seek(log_start)
        lines = log.read().decode(errors="replace").strip().split("\n")
    cause = next((line for line in reversed(lines) if "Error" in line), lines[-1])
    ending = f"was ended by signal {number}" if is_signal else f"ended with code {code}"
    return f"{ending}: {cause.strip()[:300]}"
