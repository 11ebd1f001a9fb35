import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.report.axes import Scale, linear_ticks, log_ticks, padded, tick_label, tick_step


def test_linear_scale_maps_ends_and_middle() -> None:
    scale = Scale(0.0, 10.0, 40, 140)
    assert [scale(0), scale(5), scale(10)] == [40, 90, 140]


def test_logarithmic_scale_maps_decades_evenly() -> None:
    scale = Scale(1.0, 100.0, 0, 200, log=True)
    assert [scale(1), scale(10), scale(100)] == pytest.approx([0, 100, 200])


def test_vertical_scale_runs_downwards() -> None:
    assert Scale(0.0, 4.0, 100, 20)(1.0) == 80


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1.0, 1.0, False), (2.0, 1.0, False), (0.0, 1.0, True), (float("nan"), 1.0, False)]
)
def test_scale_refuses_an_interval_that_is_no_axis(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="axis"):
        Scale(low, high, 0, 100, log=log)


def test_ticks_are_round_without_floating_point_dust() -> None:
    assert linear_ticks(0.0, 1.2, 6) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6), st.integers(2, 10))
def test_ticks_lie_inside_and_are_not_too_many(low: float, span: float, max_ticks: int) -> None:
    high = low + span
    ticks = linear_ticks(low, high, max_ticks)
    slack = 1e-6 * tick_step(low, high, max_ticks)
    assert len(ticks) <= max_ticks + 1
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_log_ticks_are_decades() -> None:
    assert log_ticks(1, 2400) == [1, 10, 100, 1000]


def test_log_ticks_within_a_decade_are_one_two_five() -> None:
    assert log_ticks(2, 9) == [2, 5]


def test_labels_have_the_decimals_of_the_step() -> None:
    assert [tick_label(0.3, 0.1), tick_label(0.25, 0.05), tick_label(1500, 500)] == ["0.3", "0.25", "1,500"]


def test_large_labels_are_in_thousands_and_millions() -> None:
    assert [tick_label(20_000, 10_000), tick_label(2_500_000, 500_000)] == ["20k", "2.5M"]


def test_negative_labels_have_a_minus_sign() -> None:
    assert tick_label(-0.5, 0.5) == "\N{MINUS SIGN}0.5"


def test_padding_widens_a_single_value() -> None:
    assert padded(0.0, 0.0) == (-1.0, 1.0)
    assert padded(0.0, 10.0, 0.1) == (-1.0, 11.0)
