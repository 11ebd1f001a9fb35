import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from rdm.errors import SourceError, UsageError
from rdm.evaluation.copies.copy_detection import GRID, RESULT, evaluate_copies, even_odds
from rdm.evaluation.copies.copy_record import Copies, CopyConfig, CopyInputs
from rdm.sampling import SampleSettings

QUICK = SampleSettings(k=2, num_steps=2, guidance_scale=1)
CONFIG = CopyConfig(num_samples=20, num_compared=20, num_planted=5, settings=QUICK)


@pytest.mark.parametrize(("wins", "trials"), [(0, 5), (50, 100), (61, 100), (3, 20)])
def test_the_test_against_even_odds_is_exact(wins: int, trials: int) -> None:
    assert even_odds(wins, trials) == pytest.approx(binomtest(wins, trials).pvalue)


def test_photographs_on_both_sides_are_refused(
    random_model: Path, photos: Path, tmp_path: Path
) -> None:
    inputs = CopyInputs(random_model, f"folder://{photos}", f"folder://{photos}")
    with pytest.raises(SourceError, match="on both sides"):
        evaluate_copies(inputs, CONFIG, tmp_path / "out")


def test_a_single_neighbor_is_refused(random_model: Path, photos: Path, tmp_path: Path) -> None:
    inputs = CopyInputs(random_model, f"folder://{photos}", f"folder://{photos}")
    config = CONFIG.model_copy(update={"settings": SampleSettings(k=1)})
    with pytest.raises(UsageError, match="without its first neighbor"):
        evaluate_copies(inputs, config, tmp_path / "out")


@pytest.mark.slow
def test_planted_copies_are_found_and_noise_is_none(
    random_model: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    inputs = CopyInputs(
        random_model,
        "samples://openimages-birds/queries",
        "samples://openimages-birds/database",
        tiny_encoder,
    )
    found = evaluate_copies(inputs, CONFIG, tmp_path / "out")
    assert (found.num_samples, found.num_compared) == (20, 20)
    power = {row.kind: row.found.value for row in found.planted}
    for kind in ("JPEG of quality 30", "mirror image", "brighter by 30%"):
        assert power[kind] == 1
    # A network of random weights draws noise, which copies nothing.
    assert found.copies_of_training.value == 0
    assert found.photographs_flagged.value <= 0.1
    assert Copies.model_validate_json((tmp_path / "out" / RESULT).read_text()) == found
    assert (tmp_path / "out" / GRID).is_file()

    # Again: from what stands, the same.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "arrays").iterdir()}
    assert json.loads(evaluate_copies(inputs, CONFIG, tmp_path / "out").model_dump_json()) == (
        json.loads(found.model_dump_json())
    )
    assert stamps == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "arrays").iterdir()
    }
