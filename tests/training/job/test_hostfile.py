from __future__ import annotations

import base64
import json
import socket
from pathlib import Path

import pytest

from rdm.errors import TrainingError, UsageError
from rdm.progress import tracking
from rdm.recipes import recipe_config
from rdm.training.job.devices import tell_device
from rdm.training.job.hostfile import Cluster, Machine
from rdm.training.job.launch import LOG, failure, orders_of, run_nodes
from rdm.training.job.machine import Orders, command, environment, interface_to, with_port


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("# two machines\nnode-1 slots=8\n\nnode-2  slots=4  # the older one\n")
    return path


def test_a_hostfile_names_machines_in_order(hostfile: Path) -> None:
    cluster = Cluster.from_hostfile(hostfile)
    assert cluster.machines == (Machine(host="node-1", slots=8), Machine(host="node-2", slots=4))
    assert cluster.num_ranks == 12
    assert cluster.shell_words(cluster.machines[1]) == ["ssh", "node-2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no machine"),
        ("node-1", "is no machine"),
        ("node-1 slots=0", "is no machine"),
        ("-oProxyCommand=x slots=1", "is no machine"),
        ("a slots=1\na slots=2", "twice"),
    ],
)
def test_a_hostfile_that_cannot_be_meant_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UsageError, match=message):
        Cluster.from_hostfile(tmp_path / "hosts")


def test_a_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Cluster.from_hostfile(tmp_path / "hosts")


def test_every_machine_gets_its_number_and_the_first_ones_address(
    hostfile: Path, tmp_path: Path
) -> None:
    orders = orders_of(
        recipe_config("rdm-tiny"), Cluster.from_hostfile(hostfile, "10.0.0.1"), tmp_path
    )
    assert [(own.node_rank, own.master_address, own.slots) for own in orders] == [
        (0, "10.0.0.1", (8, 4)),
        (1, "10.0.0.1", (8, 4)),
    ]
    words = command(orders[1], {})
    world = next(
        word.removeprefix("--world_info=") for word in words if word.startswith("--world_info=")
    )
    assert json.loads(base64.urlsafe_b64decode(world)) == {
        "node-0": list(range(8)),
        "node-1": [0, 1, 2, 3],
    }
    assert {"--node_rank=1", "--master_addr=10.0.0.1", "--master_port=29500"} <= set(words)


@pytest.mark.parametrize(
    ("device", "accelerator"), [("auto", None), ("cpu", "cpu"), ("cuda", None)]
)
def test_the_machines_decide_on_their_device_and_not_the_one_that_starts_the_job(
    hostfile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    accelerator: str | None,
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    config = recipe_config("rdm-tiny").with_overrides([f"device={device}"])
    orders = orders_of(config, Cluster.from_hostfile(hostfile), tmp_path)
    assert {own.device for own in orders} == {device}
    assert environment(orders[1]).get("DS_ACCELERATOR") == accelerator


def test_machines_with_different_devices_are_ended_with_a_clear_error(
    hostfile: Path, tmp_path: Path
) -> None:
    cluster = Cluster.from_hostfile(hostfile, remote_shell="sh -c 'cat > /dev/null # {host}'")
    orders = orders_of(recipe_config("rdm-tiny"), cluster, tmp_path)
    for node_rank, device in enumerate(("cuda", "cpu")):
        tell_device(tmp_path, node_rank, device)
    with (
        tracking("train", 1, "steps") as tracker,
        pytest.raises(TrainingError, match="node-1 on cuda, node-2 on cpu"),
    ):
        run_nodes(orders, cluster, tmp_path, tracker)


def test_the_interface_to_an_own_address_is_the_one_that_has_it() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") is None


def test_a_machine_that_ends_before_it_was_told_its_part_gives_its_exit_code_and_its_words(
    tmp_path: Path,
) -> None:
    cluster = Cluster(
        machines=(Machine(host="far", slots=1),),
        remote_shell="sh -c 'echo no route to {host}; exit 7'",
    )
    more_than_a_pipe_holds = "x" * 200_000
    orders = Orders(
        out=more_than_a_pipe_holds,
        directory="/",
        slots=(1,),
        node_rank=0,
        master_address="far",
        master_port=29500,
        device="cpu",
        pick_interface=True,
    )
    with tracking("train", 1, "steps") as tracker:
        assert run_nodes([orders], cluster, tmp_path, tracker) == 7
    assert (tmp_path / LOG).read_text() == "no route to far\n"


def one_machine(**changes: object) -> Orders:
    orders = Orders(
        out="run",
        directory="/",
        slots=(2,),
        node_rank=0,
        master_address="127.0.0.1",
        master_port=None,
        device="cpu",
        pick_interface=False,
    )
    return orders.model_copy(update=changes)


@pytest.mark.parametrize(
    "text", ["", "far slots=2\n"], ids=["this machine", "one machine of a hostfile"]
)
def test_ranks_of_one_machine_meet_on_its_loopback_at_a_free_port(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "hosts").write_text(text)
    cluster = Cluster.from_hostfile(tmp_path / "hosts") if text else Cluster()
    (orders,) = orders_of(
        recipe_config("rdm-tiny").with_overrides(["num_ranks=2"] * (not text)), cluster, tmp_path
    )
    assert (orders.master_address, orders.master_port, orders.pick_interface) == (
        "127.0.0.1",
        None,
        False,
    )
    assert with_port(orders).master_port not in (None, 0, 29500)


def test_a_port_that_was_asked_for_is_taken_where_it_is_free() -> None:
    with socket.create_server(("", 0)) as probe:
        port = probe.getsockname()[1]
    assert with_port(one_machine(master_port=port)).master_port == port


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_a_port_that_is_taken_is_refused_with_the_option_that_gives_another(address: str) -> None:
    with socket.create_server((address, 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(TrainingError, match=f"port {port}.*in use") as refused:
            with_port(one_machine(master_port=port))
        assert "--master-port" in refused.value.fix
        # another machine holds it
        assert with_port(one_machine(master_port=port, node_rank=1)).master_port == port


def test_a_taken_port_ends_the_job_within_seconds_and_before_any_rank_starts(
    tmp_path: Path, hostfile: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        cluster = Cluster.from_hostfile(hostfile, remote_shell="env X={host}", master_port=port)
        orders = orders_of(recipe_config("rdm-tiny"), cluster, tmp_path)[:1]
        with tracking("train", 1, "steps") as tracker:
            assert run_nodes(orders, Cluster(), tmp_path, tracker) == 1
    error = failure(tmp_path, 1, 0)
    assert f"port {port}" in error.what
    assert "--master-port" in error.fix
