"""One machine of a training job: starts its ranks, and ends them when whoever started it is gone.

`python -m rdm.training.job.machine` reads its orders as one line of JSON from standard input, which
then stays open for as long as the job is wanted. When it closes, by the end of the job's owner, of
the connection, or of either machine, the ranks are ended: nothing trains unattended.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rdm.compute.machine import num_cores
from rdm.compute.masks import describe_masks, inherited_masks, restored_masks, without_other_jobs
from rdm.config import Config
from rdm.errors import TrainingError
from rdm.homes import use_writable_homes
from rdm.training.job.job_errors import record_error

GRACE_SECONDS = 10.0
POLL_SECONDS = 0.2
OWNER_VARIABLE = "RDM_OWNER_PID"
NODE_VARIABLE = "RDM_NODE_RANK"


class Orders(Config):
    """What a machine needs to know to start its part of a job."""

    out: str
    directory: str = Field(
        description="where the job was started; names in configurations and caches start there"
    )
    slots: tuple[int, ...] = Field(description="ranks of every machine, in order")
    node_rank: int
    master_address: str
    master_port: int | None = Field(description="None, for a job of one machine: a free one")
    device: Literal["auto", "cpu", "cuda"] = Field(
        description="auto: the ranks decide, and tell it"
    )
    pick_interface: bool = Field(
        description="talk over the interface that leads to the master, as several machines must"
    )
    masks: dict[str, str] = Field(default={}, description="device masks where the job was started")
    machine: str = Field(default="", description="machine_id() where the job was started")


def command(orders: Orders, environment: Mapping[str, str]) -> list[str]:
    """Return the command line of DeepSpeed's launcher for this machine.

    Args:
        orders: this machine's part; one without a port leaves it to DeepSpeed.
        environment: of the launcher, whose device masks the ranks will have too.
    """
    # DeepSpeed's launcher derives global ranks from the order of the machines.
    first = [sum(orders.slots[:number]) for number in range(len(orders.slots) + 1)]
    world = {
        f"node-{number}": list(range(first[number + 1] - first[number]))
        for number in range(len(orders.slots))
    }

    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={base64.urlsafe_b64encode(json.dumps(world).encode()).decode()}",
        f"--node_rank={orders.node_rank}",
        f"--master_addr={orders.master_address}",
        *([] if orders.master_port is None else [f"--master_port={orders.master_port}"]),
        "--log_level=warning",  # it would name masks that its ranks do not see
        "--no_python",
        "--no_local_rank",
        *restored_masks(environment),
        sys.executable,
        "-u",
        "-m",
        "rdm.training.job.rank",
        "--out",
        orders.out,
    ]


def main() -> None:
    """Start the ranks, follow them to their end, and exit as they did."""
    orders = Orders.model_validate_json(sys.stdin.readline())
    use_writable_homes()
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Only a flag: ending processes takes seconds, too long for a handler.
        signal.signal(sign, lambda *_: stop.set())
    threading.Thread(target=_wait_for_owner, args=(stop,), daemon=True).start()
    sys.exit(_run_ranks(orders, stop))


def _run_ranks(orders: Orders, stop: threading.Event) -> int:
    """Run this machine's ranks until they end or are to stop; return the launcher's exit code."""
    own = environment(orders)
    try:
        orders = with_port(orders)
    except TrainingError as error:
        sys.stderr.write(f"TrainingError: {error}\n")
        record_error(Path(orders.out), error)
        return 1
    sys.stderr.write(
        f"ranks of {platform.node()} see {describe_masks(own) or 'all devices: no mask is set'}\n"
    )

    process = subprocess.Popen(
        command(orders, own),
        stdin=subprocess.DEVNULL,
        env=own,
        # A machine that lacks the folder can do without it where every name is absolute.
        cwd=orders.directory if Path(orders.directory).is_dir() else None,
        start_new_session=True,
    )

    # Standard input closes when the job's owner ends: then the ranks end too.
    while process.poll() is None and not stop.wait(POLL_SECONDS):
        pass
    code = process.poll()
    end_group(process)  # also ranks that outlived DeepSpeed's launcher
    return 1 if code is None else code & 255  # a signal's number stays legible: -9 becomes 247


def with_port(orders: Orders) -> Orders:
    """Return orders with a free port for the ranks: a new one, or the given one if it is free.

    Raises:
        TrainingError: this is the machine where the ranks meet, and the given port cannot be had.
    """
    if orders.node_rank:
        return orders
    try:
        # As torch's store will: on every interface. The kernel gives a free port for 0.
        with socket.create_server(("", orders.master_port or 0)) as probe:
            return orders.model_copy(update={"master_port": int(probe.getsockname()[1])})
    except OSError as error:
        raise TrainingError(
            f"port {orders.master_port}, where the ranks meet, cannot be had: {error.strerror}",
            where=platform.node(),
            fix="give another one, such as --master-port 29777, that is free on the first machine",
        ) from error


def environment(orders: Orders) -> dict[str, str]:
    """Return the environment of the ranks."""
    # By default every rank would start a thread for each core, and they would slow each other down.
    threads = max(1, num_cores() // orders.slots[orders.node_rank])
    found = {
        **without_other_jobs(inherited_masks(orders.masks, orders.machine)),
        OWNER_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    found.pop(NODE_VARIABLE, None)  # of a job that started this one

    # DeepSpeed picks an accelerator by itself when it is imported, wherever it finds one.
    if orders.device == "cpu":
        found["DS_ACCELERATOR"] = "cpu"
    if orders.device == "auto":
        found[NODE_VARIABLE] = str(orders.node_rank)

    # Both backends would pick an interface by themselves, and not always one that is reached.
    if orders.pick_interface and (name := interface_to(orders.master_address)):
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            found.setdefault(variable, name)
    return found


def interface_to(address: str) -> str | None:
    """Return the network interface by which this machine reaches an address, or None."""
    import psutil

    try:
        family, *_, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # a datagram socket: nothing is sent
            own = probe.getsockname()[0]
    except OSError:
        return None
    interfaces: dict[str, Any] = psutil.net_if_addrs()
    names = [
        name
        for name, addresses in interfaces.items()
        if own in {entry.address for entry in addresses}
    ]
    # The master reaches itself over the loopback, but the others reach it by the interface that has
    # its address.
    return next(iter(names), None)


def end_group(
    process: subprocess.Popen[Any], signs: Sequence[int] = (signal.SIGTERM, signal.SIGKILL)
) -> None:
    """End a process and all of its group, first politely."""
    for sign in signs:
        try:
            # The group: the ranks are children of DeepSpeed's launcher, not of this process.
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _wait_for_owner(stop: threading.Event) -> None:
    while os.read(0, 1):  # nothing comes: this returns when the other end is closed
        pass
    stop.set()


if __name__ == "__main__":
    main()
