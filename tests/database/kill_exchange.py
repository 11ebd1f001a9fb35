"""Kill exports and an import before every write, rename, link and deletion of a file, then finish
them.

Arguments: a folder with `photos` and `tiny-clip.json`; the encoder's name. A program of its own for
    the reason that kill_everywhere.py gives. Prints the number of kills in each export
    (clip-retrieval, `datasets`, npz) and in the import.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import autofaiss  # noqa: F401  loaded before the forks
import open_clip
import torch
from file_kills import assert_same, was_killed, watch_changes
from killed_work import INLINE, contents

from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.building.jobs import run_build
from rdm.database.exchange.export_database import export_database
from rdm.database.exchange.import_embeddings import ImportConfig, import_database
from rdm.encoders import load_encoder
from rdm.sources import CropConfig


def kill_at_every_change(
    place: Path, work: Callable[[Path], object], expected: dict[str, bytes]
) -> int:
    """Kill work that fills a place before each change that it makes, finish it, and compare; return
    how many kills."""
    steps = 0
    while True:
        steps += 1
        if not was_killed(lambda: work(place), steps):
            shutil.rmtree(place)
            return steps - 1
        work(place)
        assert_same(contents(place), expected, steps)
        shutil.rmtree(place)


def main(base: Path, encoder: str) -> None:
    torch.set_num_threads(1)
    open_clip.add_model_config(base / "tiny-clip.json")
    load_encoder(encoder)
    watch_changes()
    crop = CropConfig(frame_size=40, patch_size=24)
    config = BuildConfig(
        source=f"folder://{base}/photos", encoder=encoder, images_per_shard=3, crop=crop
    )
    run_build(DatabaseBuilder(str(base / "db"), config), INLINE)
    database, kills = RetrievalDatabase.open(str(base / "db")), []

    def importing(root: Path) -> None:
        taken = ImportConfig(
            format="clip-retrieval", folder=str(base / "clip-retrieval"), encoder=encoder
        )
        import_database(str(root), taken)

    works: dict[str, Callable[[Path], object]] = {
        "clip-retrieval": lambda out: export_database(database, "clip-retrieval", str(out)),
        "datasets": lambda out: export_database(database, "datasets", str(out)),
        "npz": lambda out: export_database(database, "npz", str(out)),
        "import": importing,
    }
    for name, work in works.items():
        work(base / name)
        kills.append(kill_at_every_change(base / "place", work, contents(base / name)))
    sys.stdout.write(" ".join(map(str, kills)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
