"""Requests drawn on workers: the files are those of one process, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.pool import Pool
from rdm.compute.threads import torch_threads
from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.sampling import Model, SampleSettings
from rdm.sampling.draw_request import draw_request
from rdm.sampling.draw_shard import drawing_pool
from rdm.sampling.output import JOURNAL
from rdm.sampling.request.sample_request import Request, request_of

SETTINGS = {"k": 2, "num_steps": 2, "batch_size": 3}
REQUEST = request_of({"texts": ["a", "b"], "seeds": "0-3", "settings": SETTINGS})


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def inline() -> Iterator[Pool]:
    with compute_pool(ComputeConfig(dask="inline", device="cpu")) as pool:
        yield pool


@pytest.mark.parametrize("attribution", [(), ("attention",)])
def test_batches_sent_to_workers_give_the_files_of_one_process(
    model: Model,
    database: RetrievalDatabase,
    tmp_path: Path,
    inline: Pool,
    attribution: tuple,
) -> None:
    for out, pool in ((tmp_path / "alone", None), (tmp_path / "sent", inline)):
        counts = draw_request(
            REQUEST, model, {"birds": database}, out, pool=pool, attribution=attribution
        )
        assert (counts.pictures, counts.drawn) == (8, 8)
        assert counts.pictures_per_second
    assert files(tmp_path / "alone") == files(tmp_path / "sent")


def test_workers_draw_what_a_run_in_one_process_left(
    model: Model, database: RetrievalDatabase, tmp_path: Path, inline: Pool
) -> None:
    for name in ("alone", "begun"):
        draw_request(REQUEST, model, {"birds": database}, tmp_path / name)
    (tmp_path / "begun" / "00004.png").unlink()
    counts = draw_request(REQUEST, model, {"birds": database}, tmp_path / "begun", pool=inline)
    assert counts.drawn == 1
    assert files(tmp_path / "begun") == files(tmp_path / "alone")


def test_files_of_the_request_are_found_from_the_folder_of_a_worker(
    model: Model,
    database: RetrievalDatabase,
    tmp_path: Path,
    inline: Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "navy").save("sea.png")
    asked = request_of({"images": ["sea.png"], "start": {"image": "sea.png"}, "settings": SETTINGS})
    for name, pool in (("alone", None), ("sent", inline)):
        draw_request(asked, model, {"birds": database}, Path(name), pool=pool)
    assert files(Path("alone")) == files(Path("sent"))
    assert str(tmp_path) not in Path("sent", "samples.json").read_text()


def test_no_worker_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no worker would draw"), drawing_pool("0", "cpu"):
        pass


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_on_two_workers_ends_in_the_files_of_one_process(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    settings = SampleSettings(k=2, num_steps=2, batch_size=4)
    # A patch needs no encoder, and that of these tests is unknown to other processes.
    request = Request(patches=("3",), seeds="0-39", settings=settings)
    with torch_threads(1):
        draw_request(request, model, {"birds": database}, tmp_path / "alone")
        sent = tmp_path / "sent"
        with drawing_pool("2", "cpu") as pool:
            # What is left of a run that was killed: some pictures, and a line of the next.
            draw_request(request, model, {"birds": database}, sent, pool=pool)
            lines = (sent / "samples.json").read_text().splitlines()[1:11]
            (sent / JOURNAL).write_text("".join(f"{line.rstrip(',')}\n" for line in lines) + "{")
            for name in ("samples.json", "contact.png"):
                (sent / name).unlink()
            for number in range(10, 40):
                (sent / f"{number:05d}.png").unlink()
            counts = draw_request(request, model, {"birds": database}, sent, pool=pool)
    assert (counts.pictures, counts.drawn) == (40, 30)
    assert len(json.loads((sent / "samples.json").read_text())) == 40
    assert files(sent) == files(tmp_path / "alone")
