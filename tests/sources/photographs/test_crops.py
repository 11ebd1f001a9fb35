from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.sources import CropConfig, crop_boxes

sides = st.one_of(st.integers(1, 20), st.integers(1, 6000))


@st.composite
def configs(draw: st.DrawFn) -> CropConfig:
    frame = draw(st.integers(1, 1500))
    least = draw(st.integers(1, 4))
    return CropConfig(
        mode=draw(st.sampled_from(["random", "grid"])),
        frame_size=frame,
        patch_size=draw(st.integers(max(1, frame // 8), frame)),
        min_patches=least,
        max_patches=draw(st.integers(least, 6)),
        seed=draw(st.integers(0, 2**32)),
    )


@given(st.text(max_size=10), sides, sides, configs())
def test_patches_are_squares_of_the_scaled_size_inside_the_photograph(
    name: str, width: int, height: int, config: CropConfig
) -> None:
    boxes = crop_boxes(name, width, height, config)
    side = max(1, round(config.patch_size * min(width, height) / config.frame_size))
    assert boxes.dtype == np.int32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] - boxes[:, :2] == side).all()


@given(st.text(max_size=10), st.integers(1200, 4000), st.integers(1200, 4000))
def test_patches_lie_in_the_center_square(name: str, width: int, height: int) -> None:
    boxes = crop_boxes(name, width, height, CropConfig())
    low = (np.array([width, height]) - min(width, height)) / 2
    assert (boxes[:, :2] >= np.floor(low)).all()
    assert (boxes[:, 2:] <= np.ceil(low + min(width, height))).all()


@given(st.text(max_size=10), sides, sides)
def test_same_photograph_gives_the_same_patches(name: str, width: int, height: int) -> None:
    first, second = (crop_boxes(name, width, height, CropConfig()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_crops_of_known_photographs_never_change() -> None:
    """Databases on disk depend on these numbers."""
    assert crop_boxes("p00.jpg", 1200, 1600, CropConfig()).tolist() == [
        [551, 1073, 807, 1329],
        [811, 552, 1067, 808],
        [869, 204, 1125, 460],
    ]


def test_paper_preset_cuts_two_or_three_patches_equally_often() -> None:
    counts = [len(crop_boxes(f"image{number}", 1200, 1200, CropConfig())) for number in range(2000)]
    assert set(counts) == {2, 3}
    assert np.mean(counts) == pytest.approx(2.5, abs=4 * 0.5 / 2000**0.5)


def test_random_corners_reach_every_place_evenly() -> None:
    config = CropConfig(frame_size=11, patch_size=8, min_patches=4, max_patches=4)
    corners = np.concatenate(
        [crop_boxes(str(number), 11, 11, config)[:, :2] for number in range(500)]
    )
    counts = np.bincount(corners[:, 0] * 4 + corners[:, 1], minlength=16)
    expected = 2000 / 16
    assert (np.abs(counts - expected) < 5 * expected**0.5).all()


def test_more_patches_keep_the_first_ones() -> None:
    few, many = (
        crop_boxes("a", 900, 700, CropConfig(min_patches=n, max_patches=n)) for n in (2, 5)
    )
    np.testing.assert_array_equal(few, many[:2])


def test_id_and_seed_change_the_crops() -> None:
    base = crop_boxes("a", 1200, 1200, CropConfig(min_patches=3))
    assert not np.array_equal(base, crop_boxes("b", 1200, 1200, CropConfig(min_patches=3)))
    assert not np.array_equal(base, crop_boxes("a", 1200, 1200, CropConfig(min_patches=3, seed=1)))


def test_grid_is_aligned_complete_and_centered() -> None:
    boxes = crop_boxes("a", 100, 140, CropConfig(mode="grid", frame_size=100, patch_size=30))
    starts = [(5 + 30 * column, 25 + 30 * row) for row in range(3) for column in range(3)]
    assert boxes.tolist() == [[x, y, x + 30, y + 30] for x, y in starts]


def test_grid_does_not_depend_on_the_id() -> None:
    config = CropConfig(mode="grid", frame_size=100, patch_size=50)
    np.testing.assert_array_equal(crop_boxes("a", 70, 90, config), crop_boxes("b", 70, 90, config))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 200), (200, 1), (2, 3)])
def test_smallest_photographs_give_patches_of_one_pixel(width: int, height: int) -> None:
    boxes = crop_boxes("a", width, height, CropConfig())
    assert (boxes[:, 2:] - boxes[:, :2] == 1).all()


@pytest.mark.parametrize(
    "fields", [{"patch_size": 1201}, {"min_patches": 4}, {"min_patches": 0}, {"mode": "spiral"}]
)
def test_inconsistent_sizes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        CropConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("size", "box"),
    [((128, 128), [0, 0, 128, 128]), ((48, 41), [4, 0, 45, 41]), ((1, 9), [0, 4, 1, 5])],
)
def test_whole_is_the_central_square_whatever_the_sizes(
    size: tuple[int, int], box: list[int]
) -> None:
    assert crop_boxes("a", *size, CropConfig(mode="whole")).tolist() == [box]
    assert crop_boxes(
        "a", *size, CropConfig(mode="whole", frame_size=77, patch_size=3)
    ).tolist() == [box]
