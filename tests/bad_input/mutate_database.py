"""Damage a database's own files, one at a time. Arguments: its folder; how many cases; a seed.

Every reader and writer then either works or raises an error for the user; `verify` names every
damaged part. A program of its own, see `mutate_sources`. Prints counts: what each use did with each
kind of file.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from mutate_sources import begin, limit
from mutations import mutate

from rdm.compute import ComputeConfig
from rdm.database import NeighborTable, RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.compact import compact_database
from rdm.database.verify.verify import verify_database
from rdm.errors import RdmError
from rdm.storage import Folder, VersionStore
from rdm.storage.versions import version_path


def search_index(root: Path) -> None:
    """Ask the index."""
    database = RetrievalDatabase.open(str(root))
    database.search_vectors(QUERIES, 5)


def search_exactly(root: Path) -> None:
    """Compare with every vector."""
    RetrievalDatabase.open(str(root)).search_vectors(QUERIES, 5, exact=True)


def look_up(root: Path) -> None:
    """Read what is known of patches, and their pixels."""
    database = RetrievalDatabase.open(str(root))
    living = database.living_ids()
    database.records(living)
    database.pixels(living)


def read_neighbors(root: Path) -> None:
    """Read the stored neighbors."""
    folder = Folder(root)
    version = VersionStore(folder).require()
    for name in NeighborTable.names(folder, version):
        table = NeighborTable(folder, name, version)
        for stem in table.info.stems:
            table.shard(stem)
            table.embeddings(stem)


def update(root: Path) -> None:
    """Bring the database up to date; the source has changed."""
    run_build(update_builder(str(root)), ComputeConfig(dask="inline"))


def compact(root: Path) -> None:
    """Take the deleted off the disk."""
    compact_database(str(root))


READS: tuple[Callable[[Path], None], ...] = (search_index, search_exactly, look_up, read_neighbors)
WRITES: tuple[Callable[[Path], None], ...] = (update, compact)
MEMORY_BYTES = 24 << 30  # of addresses: autofaiss starts 128 threads
QUERIES = np.zeros((0, 0), np.float16)


def outcome(use: Callable[[Path], None], root: Path) -> str:
    """Return what a use of a damaged database came to."""
    try:
        use(root)
    except RdmError as error:
        return type(error).__name__ if error.where else f"WRONG: {error} does not say where"
    except Exception:  # noqa: BLE001  every other kind is what is looked for
        return f"WRONG: {traceback.format_exc(limit=-4)}"
    return "done"


def verdict(root: Path, name: str, *, is_part: bool) -> str:
    """Return what `verify` says of a damaged file; silence about a part of the current version is a
    failure."""
    findings: list[str] = []
    result = outcome(lambda path: findings.extend(verify_database(str(path))), root)
    if result != "done" or any(name in finding for finding in findings):
        return "found" if result == "done" else result
    return f"WRONG: verify says {findings} of {name}" if is_part or findings else "not looked at"


def main(root: Path, count: int, seed: int) -> None:
    """Damage file after file of a copy, and put each back."""
    global QUERIES
    database = RetrievalDatabase.open(str(root))
    parts = {
        "manifest.json",
        version_path(database.version.number),
        *(part.path for part in database.version.parts),
    }
    QUERIES = np.array(database.embeddings(database.living_ids()[:4]))
    originals: Mapping[str, bytes] = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    names = [name for name, data in originals.items() if data and not name.startswith(".")]
    rng = random.Random(seed)
    outcomes: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    for number in range(count):
        name = names[number % len(names)]
        data, damage = mutate(originals[name], seed + number)
        (root / name).unlink()  # it may have a second name
        (root / name).write_bytes(data)
        begin(f"{number} {name} {damage} verify")
        results = {"verify": verdict(root, name, is_part=name in parts)}
        for use in READS:
            begin(f"{number} {name} {damage} {use.__name__}")
            results[use.__name__] = outcome(use, root)
        if number % 8 == 0:
            copy = root.with_name("copy")
            shutil.copytree(root, copy)
            use = rng.choice(WRITES)
            begin(f"{number} {name} {damage} {use.__name__}")
            results[use.__name__] = outcome(use, copy)
            shutil.rmtree(copy)
        (root / name).write_bytes(originals[name])
        kind = name.split("/")[0] + "/*." + name.rpartition(".")[2]
        outcomes.setdefault(kind, Counter()).update(
            f"{use}: {result[:25]}" for use, result in results.items()
        )
        wrong += [
            f"{number} {name} {damage} {use}: {result}"
            for use, result in results.items()
            if "WRONG" in result
        ]
    signal.alarm(0)
    sys.stdout.write(json.dumps({"cases": count, "outcomes": outcomes}) + "\n")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    import open_clip

    limit(MEMORY_BYTES)
    folder = Path(sys.argv[1])
    open_clip.add_model_config(folder.parent / "tiny-clip.json")
    main(folder, int(sys.argv[2]), int(sys.argv[3]))
