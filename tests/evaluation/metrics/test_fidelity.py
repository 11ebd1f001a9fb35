import numpy as np
import pytest

from rdm.evaluation.metrics.fid import frechet_distance, kernel_distance
from rdm.evaluation.metrics.fidelity import block_size, fidelity, halves_fidelity, kernel_interval


def normal(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8)) + shift


def test_all_distances_are_of_the_same_number_of_pictures() -> None:
    found = fidelity(normal(50, 0), normal(40, 1), normal(60, 2))
    assert found.num_pictures == 40
    assert found.kid_block is None
    assert found.kid_low is None


def test_excess_is_what_the_floor_leaves() -> None:
    found = fidelity(normal(300, 0, shift=1), normal(300, 1), normal(300, 2))
    assert found.excess_fid == pytest.approx(found.fid - found.floor_fid)
    assert found.excess_fid == pytest.approx(8, rel=0.1)  # eight dimensions, shifted by one each
    assert 0 < found.floor_fid < 0.5


def test_distances_are_those_of_the_sets() -> None:
    sets = [normal(40, seed, shift=seed) for seed in range(3)]
    found = fidelity(sets[0], sets[1], sets[2])
    assert found.fid == pytest.approx(frechet_distance(sets[0], sets[2]), rel=1e-9)
    assert found.floor_fid == pytest.approx(frechet_distance(sets[1], sets[2]), rel=1e-9)
    assert found.kid == pytest.approx(kernel_distance(sets[0], sets[2]), rel=1e-9)


def test_real_pictures_have_no_excess() -> None:
    real = normal(400, 1)
    found = fidelity(real, real, normal(400, 2))
    assert found.excess_fid == pytest.approx(0, abs=1e-9)
    assert found.kid_low is not None
    assert found.kid_high is not None
    assert found.kid_low < 0 < found.kid_high


@pytest.mark.parametrize(
    ("count", "size"),
    [(199, None), (200, 100), (1000, 100), (2000, 200), (10_000, 1000), (50_000, 1000)],
)
def test_blocks_are_a_tenth_within_limits(count: int, size: int | None) -> None:
    assert block_size(count) == size


def test_interval_is_over_disjoint_blocks() -> None:
    first, second = normal(250, 0), normal(250, 1, shift=1)
    parts = [kernel_distance(first[a:b], second[a:b]) for a, b in ((0, 100), (100, 200))]
    found = kernel_interval(first, second, 100)
    assert found.mean == pytest.approx(np.mean(parts))
    assert found.high - found.mean == pytest.approx(
        12.7062 * abs(parts[0] - parts[1]) / 2, rel=1e-4
    )


def test_halves_compare_one_halfs_reconstructions_with_the_other_half() -> None:
    real = normal(100, 0)
    assert halves_fidelity(real, real).excess_fid == pytest.approx(0, abs=1e-9)
    found = halves_fidelity(real, real + 1)
    assert found.num_pictures == 50
    assert found.excess_fid == pytest.approx(8, rel=0.3)


def test_one_picture_has_no_distance() -> None:
    with pytest.raises(ValueError, match="distances of 1 pictures"):
        fidelity(normal(1, 0), normal(5, 1), normal(5, 2))
