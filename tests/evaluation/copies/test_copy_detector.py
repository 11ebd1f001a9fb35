import numpy as np
import pytest
from numpy.typing import NDArray

from rdm.evaluation.copies.copy_detector import CopyFeatures, luma_cells, matched_share, nearest
from rdm.evaluation.copies.planted_copies import PLANTED, mirrored, planted


def unit_grid(seed: int, side: int = 9, channels: int = 64) -> NDArray[np.float32]:
    grid = np.random.default_rng(seed).normal(size=(side, side, channels)).astype(np.float32)
    return grid / np.linalg.norm(grid, axis=-1, keepdims=True)


def test_all_places_of_the_same_picture_match() -> None:
    grid = unit_grid(0)
    assert matched_share(grid, grid) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shift", [1, 2])
def test_a_shifted_picture_matches_where_both_show_the_same(shift: int) -> None:
    grid = unit_grid(1, side=12)
    first, second = grid[:9, :9], grid[shift : 9 + shift, :9]
    assert matched_share(first, second) == pytest.approx(1 - shift / 9, abs=0.06)


def test_a_shift_beyond_reach_does_not_match() -> None:
    grid = unit_grid(1, side=14)
    assert matched_share(grid[:9, :9], grid[4:13, :9]) < 0.2


def test_matching_is_symmetric_and_of_other_pictures_small() -> None:
    first, second = unit_grid(2), unit_grid(3)
    assert matched_share(first, second) == pytest.approx(matched_share(second, first), abs=1e-6)
    assert matched_share(first, second) < 0.2


def test_brightness_does_not_see_contrast_or_an_offset() -> None:
    picture = np.random.default_rng(0).integers(0, 100, (1, 32, 32, 3), dtype=np.uint8)
    cells = luma_cells(np.concatenate([picture, (picture * 2 + 20).astype(np.uint8)]))
    assert cells[0] @ cells[1] > 0.99
    assert np.linalg.norm(cells, axis=1).tolist() == pytest.approx([1, 1], abs=1e-6)


def features(pictures: NDArray[np.uint8], grids: list[NDArray[np.float32]]) -> CopyFeatures:
    pooled = np.stack([grid.mean((0, 1)) for grid in grids])
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    return CopyFeatures(pooled, np.stack(grids).astype(np.float16), luma_cells(pictures))


def test_the_copy_is_found_among_candidates_also_as_a_mirror_image() -> None:
    pictures = np.random.default_rng(5).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    grids = [unit_grid(seed) for seed in range(30)]
    candidates = features(pictures, grids)
    strange = [unit_grid(100), unit_grid(101)]
    noise = np.random.default_rng(6).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)

    # Picture 0 is candidate 7, and picture 1 the mirror image of candidate 11.
    own = features(np.stack([pictures[7], noise[1]]), [grids[7], strange[1]])
    turned = features(np.stack([noise[0], pictures[11]]), [strange[0], grids[11]])
    found = nearest(own, turned, candidates)
    assert found.copy_row.tolist() == found.pooled_row.tolist() == [7, 11]
    assert found.places.min() > 0.99
    assert found.luma.min() > 0.99


@pytest.mark.parametrize("name", list(PLANTED))
def test_planted_copies_are_changed_and_alike(name: str) -> None:
    ramp = np.linspace(0, 200, 64)
    picture = np.stack([np.add.outer(ramp, ramp / 8)] * 3, axis=-1).astype(np.uint8)[None]
    copy = planted(name, picture)
    assert copy.shape == picture.shape
    assert (copy != picture).any()
    view = mirrored(copy) if name == "mirror image" else copy
    assert luma_cells(view)[0] @ luma_cells(picture)[0] > 0.95
