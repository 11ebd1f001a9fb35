"""The demo: the model that ships, and databases of the embedded pictures, built when missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rdm.compute import ComputeConfig
from rdm.database.building.builder import DatabaseBuilder
from rdm.database.building.jobs import build_config, run_build
from rdm.serving.settings import Named
from rdm.storage.local_places import cache_path

MODEL = Named(name="rdm-64", place="assets://rdm-64")
SOURCES = {"birds": "samples://openimages-birds", "paintings": "samples://met-paintings"}


def demo_databases() -> tuple[Named, ...]:
    """Return where the demo's databases lie, built or not."""
    return tuple(Named(name=name, place=str(cache_path(f"serve-demo/{name}"))) for name in SOURCES)


def demo_data() -> Path:
    """Return where the demo keeps its pictures."""
    return cache_path("serve-demo/data")


def build_demo(tell: Callable[[str], None]) -> None:
    """Build the databases that are missing; an interrupted build goes on.

    Args:
        tell: is told of each that is built.
    """
    for named in demo_databases():
        if (Path(named.place) / "manifest.json").exists():
            continue
        tell(f"building the database {named.name} (once, about a minute): {named.place}")
        # One patch a picture: the embedded ones are small.
        config = build_config(SOURCES[named.name], "whole")
        run_build(DatabaseBuilder(named.place, config), ComputeConfig(dask="inline"))
