"""The machines of a training job, and how each is told to start its ranks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from rdm.config import Config
from rdm.errors import UsageError

REMOTE_SHELL = "ssh {host}"
MASTER_PORT = 29500


class Machine(Config):
    """One line of a hostfile."""

    host: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", description="name that the remote shell knows"
    )
    slots: int = Field(ge=1, description="ranks that it runs: one per accelerator")


class Cluster(Config):
    """Where a job runs: on the machines of a hostfile, or on this one alone.

    The first machine is the one where the ranks meet. `remote_shell` starts a command on a machine;
    it must pass on the command's standard input and end it when the connection closes, as ssh does.
    """

    machines: tuple[Machine, ...] = ()
    master_address: str | None = Field(
        default=None, description="where the others reach the first machine; None: its name"
    )
    master_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="where the ranks meet, on the first one; None: a free one, or "
        f"{MASTER_PORT} for several machines",
    )
    remote_shell: str = Field(
        default=REMOTE_SHELL, description="with {host}, or empty for this machine itself"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.machines and "{host}" not in self.remote_shell:
            raise ValueError(f"remote_shell {self.remote_shell!r} does not contain {{host}}")
        return self

    @classmethod
    def from_hostfile(
        cls,
        path: Path,
        master_address: str | None = None,
        remote_shell: str = REMOTE_SHELL,
        master_port: int | None = None,
    ) -> Cluster:
        """Read a hostfile in DeepSpeed's format: `NAME slots=N` per line, `#` begins a comment.

        Args:
            path: the file.
            master_address: where the machines reach the first; None: by its name.
            remote_shell: command that runs others on a machine.
            master_port: where the ranks meet; None: a free or a fixed one.

        Raises:
            UsageError: the file cannot be read, a line is something else, or the port or the shell
                cannot be meant.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UsageError(
                f"the hostfile cannot be read: {error.strerror}", where=path, fix="check --hostfile"
            ) from error

        machines = [
            _machine(text, path, number)
            for number, line in enumerate(lines, 1)
            if (text := _stripped(line))
        ]

        if not machines:
            raise UsageError(
                "the hostfile names no machine",
                where=path,
                fix="write one line `NAME slots=N` for each",
            )
        if len({machine.host for machine in machines}) < len(machines):
            raise UsageError(
                "the hostfile names a machine twice", where=path, fix="one line per machine"
            )
        try:
            return cls(
                machines=tuple(machines),
                master_address=master_address,
                remote_shell=remote_shell,
                master_port=master_port,
            )
        except ValidationError as error:
            raise UsageError(
                error.errors()[0]["msg"], fix="check --remote-shell and --master-port"
            ) from error

    @property
    def num_ranks(self) -> int:
        """The ranks of all machines; 0 for this machine alone, where the settings decide."""
        return sum(machine.slots for machine in self.machines)

    def shell_words(self, machine: Machine) -> list[str]:
        """Return the words that stand before a command to run it on a machine."""
        return [word.replace("{host}", machine.host) for word in shlex.split(self.remote_shell)]


def _stripped(line: str) -> str:
    return line.partition("#")[0].strip()


def _machine(text: str, path: Path, number: int) -> Machine:
    match = re.fullmatch(r"(\S+)\s+slots=([1-9][0-9]*)", text)
    if match is None or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]*", match[1]):
        raise UsageError(
            f"{text!r} is no machine", where=f"{path}, line {number}", fix="write NAME slots=N"
        )
    return Machine(host=match[1], slots=int(match[2]))
