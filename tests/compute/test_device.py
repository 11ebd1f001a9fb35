from __future__ import annotations

import pytest
import torch

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.device import compute_device, describe_device, worker_device
from rdm.errors import DeviceError

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def test_cpu_is_the_cpu_on_every_machine() -> None:
    assert describe_device(compute_device("cpu")) == "cpu"


@NO_GPU
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert worker_device("auto") == compute_device("auto") == torch.device("cpu")


@NO_GPU
def test_a_gpu_that_is_not_there_is_refused_in_three_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError) as error:
        compute_device("cuda")
    assert str(error.value).splitlines() == [
        "device is cuda, but PyTorch finds no GPU here",
        "  where: CUDA_VISIBLE_DEVICES=",
        "  fix:   check the driver with `rdm doctor`, or --device cpu",
    ]


@NO_GPU
@pytest.mark.parametrize("dask", ["local", "inline"])
def test_a_cluster_is_not_started_for_a_gpu_that_is_not_there(dask: str) -> None:
    with (
        pytest.raises(DeviceError, match="finds no GPU"),
        compute_pool(ComputeConfig(dask=dask, device="cuda")),
    ):
        pass


def test_a_pool_says_what_its_shards_compute_on() -> None:
    with compute_pool(ComputeConfig(dask="inline", device="cpu")) as pool:
        assert pool.describe_device() == "cpu"


@GPU
def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert compute_device("auto").type == worker_device("auto").type == "cuda"
    assert torch.cuda.get_device_name(0) in describe_device(compute_device("auto"))
