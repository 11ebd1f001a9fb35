"""The machines of a training job, and how each is told to start its ranks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rdm.config import Config
from rdm.errors import TrainingError, UsageError
from rdm.storage.files import atomic_path

REMOTE_SHELL = "ssh {host}"
DEVICES = ".devices"


class Machine(Config):
    """One line of a hostfile."""

    host: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", description="name that the remote shell knows")
    slots: int = Field(ge=1, description="ranks that it runs: one per accelerator")


class Cluster(Config):
    """Where a job runs: on the machines of a hostfile, or on this one alone.

    The first machine is the one where the ranks meet. `remote_shell` starts a command on a machine; it must pass on the
    command's standard input and end it when the connection closes, as ssh does.
    """

    machines: tuple[Machine, ...] = ()
    master_address: str | None = Field(
        default=None, description="where the others reach the first machine; None: its name"
    )
    master_port: int = Field(default=29500, ge=1, le=65535)
    remote_shell: str = Field(default=REMOTE_SHELL, description="with {host}, or empty for this machine itself")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.machines and "{host}" not in self.remote_shell:
            raise ValueError(f"remote_shell {self.remote_shell!r} does not contain {{host}}")
        return self

    @classmethod
    def from_hostfile(cls, path: Path, master_address: str | None = None, remote_shell: str = REMOTE_SHELL) -> Cluster:
        """Read a hostfile in DeepSpeed's format: `NAME slots=N` per line, `#` begins a comment.

        Raises:
            UsageError: the file cannot be read, or a line is something else.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UsageError(
                f"the hostfile cannot be read: {error.strerror}", where=path, fix="check --hostfile"
            ) from error
        machines = [_machine(text, path, number) for number, line in enumerate(lines, 1) if (text := _stripped(line))]
        if not machines:
            raise UsageError("the hostfile names no machine", where=path, fix="write one line `NAME slots=N` for each")
        if len({machine.host for machine in machines}) < len(machines):
            raise UsageError("the hostfile names a machine twice", where=path, fix="one line per machine")
        return cls(machines=tuple(machines), master_address=master_address, remote_shell=remote_shell)

    @property
    def num_ranks(self) -> int:
        """The ranks of all machines; 0 for this machine alone, where the settings decide."""
        return sum(machine.slots for machine in self.machines)

    def shell_words(self, machine: Machine) -> list[str]:
        """Return the words that stand before a command to run it on a machine."""
        return [word.replace("{host}", machine.host) for word in shlex.split(self.remote_shell)]


def tell_device(out: Path, node_rank: int, device: str) -> None:
    """Write down, below a run's folder, what a machine of its job computes on."""
    with atomic_path(out / DEVICES / str(node_rank)) as temporary:
        temporary.write_text(device, encoding="utf-8")


def require_one_device(out: Path, machines: Sequence[Machine]) -> None:
    """Raise TrainingError where the machines told different devices: their ranks would wait for each other in vain."""
    told = {
        machine.host: path.read_text(encoding="utf-8")
        for node_rank, machine in enumerate(machines)
        if (path := out / DEVICES / str(node_rank)).exists()
    }
    if len(set(told.values())) > 1:
        raise TrainingError(
            f"the machines do not train on the same device: {', '.join(f'{host} on {told[host]}' for host in told)}",
            fix="--set device=cpu, or leave the machines without a GPU out of the hostfile",
        )


def _stripped(line: str) -> str:
    return line.partition("#")[0].strip()


def _machine(text: str, path: Path, number: int) -> Machine:
    match = re.fullmatch(r"(\S+)\s+slots=([1-9][0-9]*)", text)
    if match is None or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]*", match[1]):
        raise UsageError(f"{text!r} is no machine", where=f"{path}, line {number}", fix="write NAME slots=N")
    return Machine(host=match[1], slots=int(match[2]))
