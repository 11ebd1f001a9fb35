from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdm.database import RetrievalDatabase
from rdm.errors import ConcurrentWriterError, UsageError
from rdm.sampling import DrawStep, Model, SampleSettings, open_model
from rdm.sampling.draw_request import DrawnCounts, draw_request
from rdm.sampling.output import JOURNAL, SampleFolder, read_samples
from rdm.sampling.request.sample_request import Request
from rdm.sampling.retrieval.look_up import LookUp

SETTINGS = SampleSettings(k=2, num_steps=2, batch_size=3)
# eight pictures in batches of 3, 3 and 2
REQUEST = Request(texts=("a", "b"), seeds="0-3", settings=SETTINGS)


class Killed(Exception):
    """Ends a run as a kill would: nothing after it runs."""


def kill_in_batch(number: int) -> tuple[list[tuple[int, ...]], object]:
    """Return the seeds of each batch that was begun, and a listener that ends the run in batch
    `number`."""
    begun: list[tuple[int, ...]] = []

    def listener(step: DrawStep) -> None:
        if step.index == 1:
            begun.append(step.seeds)
        if len(begun) > number:
            raise Killed

    return begun, listener


def pixels(folder: Path) -> dict[str, bytes]:
    return {
        path.name: np.asarray(Image.open(path)).tobytes() for path in sorted(folder.glob("*.png"))
    }


@pytest.fixture(scope="module")
def whole(
    model: Model, database: RetrievalDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("samples") / "whole"
    counts = draw_request(REQUEST, model, {"birds": database}, out)
    assert (counts.pictures, counts.drawn) == (8, 8)
    return out


def test_pictures_are_written_while_others_are_still_to_be_drawn(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    _, listener = kill_in_batch(2)
    with pytest.raises(Killed):
        draw_request(REQUEST, model, {"birds": database}, tmp_path, on_step=listener)  # pyright: ignore[reportArgumentType]
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == [f"{n:05d}.png" for n in range(6)]
    assert len(pixels(tmp_path)) == 6


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_files(
    model: Model, database: RetrievalDatabase, whole: Path, tmp_path: Path, batch: int
) -> None:
    _, listener = kill_in_batch(batch)
    with pytest.raises(Killed):
        draw_request(REQUEST, model, {"birds": database}, tmp_path, on_step=listener)  # pyright: ignore[reportArgumentType]
    begun, listener = kill_in_batch(9)
    counts = draw_request(REQUEST, model, {"birds": database}, tmp_path, on_step=listener)  # pyright: ignore[reportArgumentType]
    assert counts.drawn == 8 - 3 * batch
    assert len(begun) == 3 - batch
    assert pixels(tmp_path) == pixels(whole)
    assert (tmp_path / "samples.json").read_bytes() == (whole / "samples.json").read_bytes()


def test_a_record_that_was_being_written_is_drawn_again(
    model: Model, database: RetrievalDatabase, whole: Path, tmp_path: Path
) -> None:
    _, listener = kill_in_batch(1)
    with pytest.raises(Killed):
        draw_request(REQUEST, model, {"birds": database}, tmp_path, on_step=listener)  # pyright: ignore[reportArgumentType]
    torn = (tmp_path / JOURNAL).read_bytes()[:-20]
    (tmp_path / JOURNAL).write_bytes(torn)
    assert draw_request(REQUEST, model, {"birds": database}, tmp_path).drawn == 6
    assert (tmp_path / "samples.json").read_bytes() == (whole / "samples.json").read_bytes()


def test_the_same_request_again_draws_nothing(
    model: Model, database: RetrievalDatabase, whole: Path
) -> None:
    before = (whole / "samples.json").stat().st_mtime_ns
    assert draw_request(REQUEST, model, {"birds": database}, whole) == DrawnCounts(
        pictures=8, drawn=0
    )
    assert (whole / "samples.json").stat().st_mtime_ns == before


def test_a_picture_that_is_gone_is_drawn_again_bit_for_bit(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    draw_request(REQUEST, model, {"birds": database}, tmp_path)
    before, index = pixels(tmp_path), (tmp_path / "samples.json").read_bytes()
    (tmp_path / "00004.png").unlink()
    assert draw_request(REQUEST, model, {"birds": database}, tmp_path).drawn == 1
    assert pixels(tmp_path) == before
    assert (tmp_path / "samples.json").read_bytes() == index


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"texts": ("a",)}, "texts"),
        ({"seeds": "0"}, "seeds"),
        ({"settings": SETTINGS.model_copy(update={"k": 1})}, "settings"),
        ({"unconditional": True, "texts": ()}, "texts, unconditional, top_m"),
    ],
)
def test_another_request_into_the_same_folder_is_refused_by_name(
    model: Model, database: RetrievalDatabase, whole: Path, change: dict[str, Any], named: str
) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(UsageError, match=f"another request: {named} differ"):
        draw_request(REQUEST.model_copy(update=change), model, {"birds": database}, whole)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_a_later_version_of_the_database_is_another_request(
    model: Model, database: RetrievalDatabase, whole: Path
) -> None:
    later = RetrievalDatabase(database.folder, database.version.model_copy(update={"number": 2}))
    with pytest.raises(UsageError, match="another request: database differ"):
        draw_request(REQUEST, model, {"birds": later}, whole)


def test_pictures_that_no_record_describes_are_not_mixed_with_new_ones(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    (tmp_path / "00007.png").write_bytes(b"of somebody else")
    with pytest.raises(UsageError, match=r"would replace, such as 00007\.png"):
        draw_request(REQUEST, model, {"birds": database}, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [
        "00007.png"
    ]


def test_two_runs_do_not_draw_into_one_folder(
    model: Model, database: RetrievalDatabase, whole: Path
) -> None:
    identity = LookUp(REQUEST, model.info, {"birds": database}).identity(model)
    with (
        SampleFolder(whole, identity),
        pytest.raises(ConcurrentWriterError, match="is drawing into this folder"),
    ):
        draw_request(REQUEST, model, {"birds": database}, whole)


def test_the_model_may_move_between_two_runs(
    model: Model, database: RetrievalDatabase, whole: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(model.directory, tmp_path / "moved")
    moved = open_model(tmp_path / "moved")
    assert draw_request(REQUEST, moved, {"birds": database}, whole).drawn == 0


def test_the_first_pictures_can_be_read_alone(whole: Path) -> None:
    first = read_samples(whole, 3)
    assert [(item.query.label, item.seed) for item in first] == [("a", 0), ("a", 1), ("a", 2)]
    assert [len(item.query.neighbor_ids) for item in first] == [2, 2, 2]
