"""What the machines of a job compute on: each writes it down, and all must agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rdm.errors import TrainingError
from rdm.storage.files import atomic_path
from rdm.training.job.hostfile import Machine

DEVICES = ".devices"


def tell_device(out: Path, node_rank: int, device: str) -> None:
    """Write down, below a run's folder, what a machine of its job computes on."""
    with atomic_path(out / DEVICES / str(node_rank)) as temporary:
        temporary.write_text(device, encoding="utf-8")


def require_one_device(out: Path, machines: Sequence[Machine]) -> None:
    """Raise TrainingError if machines use different devices: their ranks would wait in vain."""
    told = {
        machine.host: path.read_text(encoding="utf-8")
        for node_rank, machine in enumerate(machines)
        if (path := out / DEVICES / str(node_rank)).exists()
    }
    # NCCL and gloo do not speak to each other: the job would stand until a timeout.
    if len(set(told.values())) > 1:
        raise TrainingError(
            "the machines do not train on the same device: "
            f"{', '.join(f'{host} on {told[host]}' for host in told)}",
            fix="--set device=cpu, or leave the machines without a GPU out of the hostfile",
        )
