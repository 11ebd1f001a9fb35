"""Device masks: environment variables that say which accelerators a process may use.

A mask belongs to whoever set it, a scheduler or a user on a shared machine. Ranks see it as it
stood where their machine's part of the job was started; only then is device number i of a rank the
i-th device that the job may use.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# DeepSpeed's launcher sets its accelerator's mask to the numbers 0, 1, ... (DeepSpeed#662, #2980).
LAUNCHER_MASKS = (
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "MLU_VISIBLE_DEVICES",
    "SDAA_VISIBLE_DEVICES",
    "SUPA_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
)
_OTHER_MASKS = (
    "ONEAPI_DEVICE_SELECTOR",
    "HABANA_VISIBLE_MODULES",
    "GPU_DEVICE_ORDINAL",
    "CUDA_DEVICE_ORDER",
)
# The masks that decide what PyTorch finds.
_GPU_MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_NO_DEVICE = ("", "-1", "NoDevFiles")

# Variables of other job launchers: a job that is started inside of another is not part of it.
_OTHER_JOBS = re.compile(
    r"(?:LOCAL_|GROUP_|ROLE_|NODE_|CROSS_)?RANK|(?:LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|ROLE_NAME"
    r"|LOCAL_SIZE|CROSS_SIZE|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_.*"
)


def device_masks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that decide which accelerators are visible."""
    return {
        name: value
        for name, value in environment.items()
        if name.endswith("_VISIBLE_DEVICES") or name in LAUNCHER_MASKS or name in _OTHER_MASKS
    }


def restored_masks(environment: Mapping[str, str]) -> list[str]:
    """Return the words before a rank's command that undo DeepSpeed's changes of the masks.

    Args:
        environment: the launcher's own.
    """
    # Masks that were not set are unset again, the others get their values.
    unset = [word for name in LAUNCHER_MASKS if name not in environment for word in ("-u", name)]
    return [
        "env",
        *unset,
        *(f"{name}={environment[name]}" for name in LAUNCHER_MASKS if name in environment),
    ]


def without_other_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of another launcher's ranks."""
    return {name: value for name, value in environment.items() if not _OTHER_JOBS.fullmatch(name)}


def describe_masks(environment: Mapping[str, str]) -> str:
    """Return the masks as `NAME=value` for people; empty where none is set."""
    return ", ".join(f"{name}={value}" for name, value in sorted(device_masks(environment).items()))


def unfulfilled_masks(environment: Mapping[str, str]) -> str:
    """Return the masks that name a GPU, as `NAME=value`; empty if no GPU was meant."""
    # For the message where PyTorch finds none: one mask that hides all GPUs explains it.
    masks = {name: environment[name] for name in _GPU_MASKS if name in environment}
    if any(value.partition(",")[0].strip() in _NO_DEVICE for value in masks.values()):
        return ""
    return describe_masks(masks)


def machine_id() -> str:
    """Return a name of this machine, or container, since it was started."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node()}/{boot}"


def inherited_masks(masks: Mapping[str, str], machine: str) -> dict[str, str]:
    """Return this process's environment with the masks of a job from this very machine.

    A remote shell to this machine drops the environment, and with it a mask. Variables that are set
    here count more. The masks of another machine number other devices, and say nothing here.

    Args:
        masks: those of the process that started the job.
        machine: `machine_id()` there.
    """
    return {**(masks if machine == machine_id() else {}), **os.environ}
