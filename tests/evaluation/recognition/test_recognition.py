import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.encoders import load_encoder
from rdm.errors import EncoderMismatchError, SourceError, UsageError
from rdm.evaluation.recognition.labelled import read_classes
from rdm.evaluation.recognition.recognition import GRID, RESULT, evaluate_recognition
from rdm.evaluation.recognition.recognition_record import (
    JudgeName,
    Recognition,
    RecognitionConfig,
    RecognitionInputs,
    recognition_row,
)
from rdm.sampling import SampleSettings

QUICK = SampleSettings(k=2, num_steps=2, guidance_scale=1)
CONFIG = RecognitionConfig(per_class=2, num_queries=4, settings=QUICK)


@pytest.fixture
def tar(tmp_path: Path, labelled_tar: Callable[..., Path]) -> Path:
    return labelled_tar(tmp_path / "held.tar", [3, 3])


def test_row_counts_the_best_and_the_five_best() -> None:
    scores = np.tile(-np.arange(7.0), (4, 1))  # class 0 is the best, class 6 the worst
    row = recognition_row("r", scores, np.array([0, 1, 4, 6]))
    assert (row.top1.value, row.num_pictures) == (0.25, 4)
    assert row.top5 is not None
    assert row.top5.value == 0.75


def test_five_classes_have_no_top5() -> None:
    assert recognition_row("r", np.eye(5), np.arange(5)).top5 is None


def test_ties_are_no_successes() -> None:
    assert recognition_row("r", np.zeros((3, 2)), np.array([0, 1, 0])).top1.value == 0


def test_pictures_without_classes_are_identified_by_their_neighbors(
    random_model: Path, photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    inputs = RecognitionInputs(random_model, f"folder://{photos}", encoder=tiny_encoder)
    found = evaluate_recognition(inputs, CONFIG, tmp_path / "out")
    assert (found.rows, found.ratio, found.judge, found.num_classes) == ((), None, None, None)
    assert found.fidelity == {}
    assert found.identification.num_contexts == found.num_samples == 4
    assert 0 <= found.identification.auc <= 1
    assert Recognition.model_validate_json((tmp_path / "out" / RESULT).read_text()) == found
    with Image.open(tmp_path / "out" / GRID) as grid:
        assert grid.height > 3 * 4 * 128

    # Again: read, not measured, whatever stands in the folder besides.
    stamp = (tmp_path / "out" / GRID).stat().st_mtime_ns
    assert evaluate_recognition(inputs, CONFIG, tmp_path / "out") == found
    assert (tmp_path / "out" / GRID).stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_samples_are_judged_beside_their_anchors(
    random_model: Path, tar: Path, classes_file: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    classes = read_classes(classes_file)
    inputs = RecognitionInputs(random_model, f"webdataset://{tar}", classes, encoder=tiny_encoder)
    found = evaluate_recognition(inputs, CONFIG, tmp_path / "out")
    rows = {row.name: row for row in found.rows}
    assert list(rows) == [
        "photographs",
        "reconstructions",
        "mosaics 16x16",
        "mosaics 8x8",
        "samples",
        "samples, another class's neighbors",
        "chance",
    ]
    assert [row.num_pictures for row in found.rows] == [4, 4, 4, 4, 4, 4, 0]
    assert rows["chance"].top1.value == 0.5
    # Of two classes, the other one's neighbors are right where the own ones are wrong.
    assert rows["samples, another class's neighbors"].top1.value == 1 - rows["samples"].top1.value
    if rows["reconstructions"].top1.value:
        assert found.ratio == rows["samples"].top1.value / rows["reconstructions"].top1.value
    assert found.settings["k"] == 2
    assert "EfficientNet-Lite2" in str(found.judge)

    # A result that is lost is put together again from what stands, without a network.
    (tmp_path / "out" / RESULT).unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "arrays").iterdir()}
    assert evaluate_recognition(inputs, CONFIG, tmp_path / "out") == found
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "arrays").iterdir()
    } == stamps


@pytest.mark.slow
def test_probe_is_fitted_to_other_pictures(
    random_model: Path,
    tar: Path,
    tmp_path: Path,
    tiny_encoder: str,
    labelled_tar: Callable[..., Path],
) -> None:
    (tmp_path / "c.json").write_text(json.dumps(["daisy", "rose"]))
    fitted = labelled_tar(tmp_path / "train.tar", [5, 5], first=50)
    inputs = RecognitionInputs(
        random_model,
        f"webdataset://{tar}",
        read_classes(tmp_path / "c.json"),
        "probe",
        f"webdataset://{fitted}",
        tiny_encoder,
    )
    config = CONFIG.model_copy(update={"distances": True})
    found = evaluate_recognition(inputs, config, tmp_path / "out")
    assert "fitted to 10 pictures" in str(found.judge)
    assert set(found.fidelity) == {"reconstructions", "samples"}
    assert {distances.num_pictures for distances in found.fidelity.values()} == {3}
    assert found.fidelity["samples"].floor_fid == found.fidelity["reconstructions"].floor_fid
    assert all(row.top5 is None for row in found.rows)


@pytest.mark.parametrize("judge", ["imagenet", "probe"])
def test_judge_that_lacks_what_it_needs_is_a_usage_error(
    judge: JudgeName, random_model: Path, tar: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    (tmp_path / "c.json").write_text(json.dumps(["daisy", "rose"]))
    classes = read_classes(tmp_path / "c.json")
    inputs = RecognitionInputs(
        random_model, f"webdataset://{tar}", classes, judge, encoder=tiny_encoder
    )
    with pytest.raises(UsageError) as error:
        evaluate_recognition(inputs, CONFIG, tmp_path / "out")
    assert "--probe-pictures" in error.value.fix


def test_probe_of_the_measured_pictures_is_refused(
    random_model: Path, tar: Path, classes_file: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    spec = f"webdataset://{tar}"
    inputs = RecognitionInputs(
        random_model, spec, read_classes(classes_file), "probe", spec, tiny_encoder
    )
    with pytest.raises(SourceError, match="6 pictures are to be fitted to and measured on"):
        evaluate_recognition(inputs, CONFIG, tmp_path / "out")


def test_fewer_samples_than_one_can_be_identified_among_are_refused(
    random_model: Path, tar: Path, classes_file: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    classes = read_classes(classes_file)
    inputs = RecognitionInputs(random_model, f"webdataset://{tar}", classes, encoder=tiny_encoder)
    with pytest.raises(UsageError, match="2 samples, but each is identified among 3 or more"):
        evaluate_recognition(inputs, CONFIG.model_copy(update={"per_class": 1}), tmp_path / "out")


def test_another_encoder_is_refused(
    random_model: Path, photos: Path, tmp_path: Path, make_encoder: Callable[[int], str]
) -> None:
    other = make_encoder(1)
    inputs = RecognitionInputs(random_model, f"folder://{photos}", encoder=other)
    with pytest.raises(EncoderMismatchError) as error:
        evaluate_recognition(inputs, CONFIG, tmp_path / "out")
    assert load_encoder(other).fingerprint.digest() in error.value.what


def test_model_without_neighbors_is_refused(
    random_model: Path, photos: Path, tmp_path: Path
) -> None:
    info = json.loads((random_model / "model.json").read_text())
    info["generator"]["conditions"]["neighbors"]["dropout"] = 1
    copy = tmp_path / "ldm"
    copy.mkdir()
    for entry in random_model.iterdir():
        (copy / entry.name).symlink_to(entry)
    (copy / "model.json").unlink()
    (copy / "model.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match="reads no neighbors"):
        evaluate_recognition(
            RecognitionInputs(copy, f"folder://{photos}"), CONFIG, tmp_path / "out"
        )
