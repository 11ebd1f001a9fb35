"""Plots as SVG: what is drawn, where, in which colors, and what the page reads of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from rdm.report.data import Estimate
from rdm.report.html import plots

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(SVG + "text")]


def titles(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(SVG + "title")]


def named(svg: str, name: str) -> ElementTree.Element:
    return next(
        group
        for group in parsed(svg).iter(SVG + "g")
        if (group.findtext(SVG + "title") or "") == name
    )


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    """The corners of a path, or where markers stand."""
    marks = [(float(use.get("x", 0)), float(use.get("y", 0))) for use in element.iter(SVG + "use")]
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", element.get("d", ""))]
    return marks or list(zip(numbers[::2], numbers[1::2], strict=True))


def curves(svg: str) -> list[list[tuple[float, float]]]:
    """The records and their running mean."""
    return [
        points(path)
        for path in parsed(svg).iter(SVG + "path")
        if "var(--plot-1,#0b6e66)" in path.get("style", "")
    ]


def test_loss_curve_spans_the_axes_from_the_first_step_to_the_last() -> None:
    records, _ = curves(
        plots.loss_curve([0, 50, 100], [1.0, 0.5, 0.0], title="t", y_label="loss", size=(260, 170))
    )
    # x: 0..100 on 48..248; y: -0.05..1.05 on 126..26.
    assert records == [
        (48.0, pytest.approx(30.5, abs=0.1)),
        (148.0, 76.0),
        (248.0, pytest.approx(121.4, abs=0.1)),
    ]


def test_loss_curve_with_logarithmic_steps_spaces_decades_evenly() -> None:
    svg = plots.loss_curve(
        [1, 10, 100], [1.0, 1.0, 0.0], title="t", y_label="loss", log_x=True, size=(260, 170)
    )
    assert [x for x, _ in curves(svg)[0]] == [48.0, 148.0, 248.0]
    assert {"1", "10", "100", "training step (logarithmic)"} <= set(texts(svg))


def test_loss_curve_counts_records_that_are_not_finite() -> None:
    svg = plots.loss_curve([1, 2, 3], [1.0, float("nan"), 0.5], title="t", y_label="loss")
    assert "1 records that are not finite left out" in texts(svg)
    assert "nan" not in svg


@pytest.mark.parametrize("log_x", [False, True])
def test_loss_curve_shows_a_single_record_as_a_point(log_x: bool) -> None:
    svg = plots.loss_curve([1], [0.5], title="t", y_label="loss", log_x=log_x)
    assert (
        len([use for use in parsed(svg).iter(SVG + "use") if "--plot-1" in use.get("style", "")])
        == 1
    )


def test_loss_curve_draws_and_names_held_out_losses_as_points() -> None:
    svg = plots.loss_curve(
        [0, 1000], [1.0, 0.0], title="t", y_label="l", held_out=([500], [0.5]), size=(260, 170)
    )
    assert points(named(svg, "held out, step 500: 0.5")) == [(148.0, 76.0)]


def test_loss_curve_without_a_finite_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        plots.loss_curve([1], [float("inf")], title="t", y_label="loss")


def test_loss_curve_of_many_records_stays_small_and_keeps_the_spike() -> None:
    losses = np.full(200_000, 0.5)
    losses[123_456] = 9.0
    svg = plots.loss_curve(
        range(200_000), losses.tolist(), title="t", y_label="loss", size=(260, 170)
    )
    records = curves(svg)[0]
    assert len(records) <= 800
    assert min(y for _, y in records) == pytest.approx(26 + 100 * 0.05 / 1.1, abs=0.2)
    assert len(svg) < 40_000


def test_running_mean_is_centered_and_shrinks_at_the_ends() -> None:
    assert plots.running_mean(np.array([0.0, 3.0, 6.0, 9.0]), reach=1).tolist() == [
        0.0,
        3.0,
        6.0,
        7.5,
    ]


def test_running_mean_of_a_falling_line_does_not_lag() -> None:
    line = np.linspace(5.0, 1.0, 101)
    np.testing.assert_allclose(plots.running_mean(line, reach=10)[:91], line[:91])


def test_interval_plot_puts_the_dot_in_the_middle_of_its_whisker() -> None:
    svg = plots.interval_plot(
        [("a", Estimate(0.5, 0.0, 1.0))], title="t", x_label="loss", width=600
    )
    groups = [
        g
        for g in parsed(svg).iter(SVG + "g")
        if (g.findtext(SVG + "title") or "").startswith("a: 0.5, 95%")
    ]
    (low, y), (high, _) = points(groups[0])
    # The label takes 24 of 600 pixels and the margin 12; beyond the interval there is a twentieth
    # of it at either end.
    beyond = 564 * 0.05 / 1.1
    assert [low, high] == pytest.approx([24 + beyond, 588 - beyond], abs=0.1)
    assert points(groups[1]) == [(pytest.approx((low + high) / 2), y)]


def test_interval_plot_marks_the_reference() -> None:
    svg = plots.interval_plot(
        [("a", Estimate(1.0, 1.0, 1.0))], title="t", x_label="d", reference=0.0, width=600
    )
    (line,) = (
        path
        for path in parsed(svg).iter(SVG + "path")
        if "stroke-dasharray" in path.get("style", "")
    )
    (top, _), (bottom, _) = points(line)
    assert top == bottom == pytest.approx(24 + 564 * 0.05 / 1.1, abs=0.1)


def test_interval_plot_says_which_estimate_is_missing() -> None:
    missing = Estimate(float("nan"), float("nan"), float("nan"))
    assert "not available" in texts(
        plots.interval_plot([("a", missing)], title="t", x_label="loss")
    )


def test_interval_plot_shortens_long_labels() -> None:
    svg = plots.interval_plot(
        [("label " * 40, Estimate(0.5, 0.4, 0.6))], title="t", x_label="loss", width=350
    )
    assert any(text.endswith("\N{HORIZONTAL ELLIPSIS}") and len(text) < 60 for text in texts(svg))


def test_histogram_bars_have_heights_proportional_to_counts() -> None:
    svg = plots.histogram([0.0, 0.2, 1.0], title="t", x_label="x", num_bins=2, size=(260, 170))
    heights = []
    for name in ("0 to 0.5: 2", "0.5 to 1: 1"):
        ys = [y for path in named(svg, name).iter(SVG + "path") for _, y in points(path)]
        heights.append(max(ys) - min(ys))
    assert (
        heights[0] == pytest.approx(2 * heights[1], abs=0.2) == pytest.approx(100 / 1.05, abs=0.2)
    )


def test_histogram_of_equal_values_has_one_bar() -> None:
    named_bars = [
        title
        for title in titles(plots.histogram([0.5] * 7, title="t", x_label="x"))
        if " to " in title
    ]
    assert [title.partition(": ")[2] for title in named_bars] == ["7"]


def every_plot(text: str) -> list[str]:
    estimate = Estimate(0.5, 0.4, 0.6)
    return [
        plots.loss_curve([1, 2], [1.0, 0.5], title=text, y_label=text, held_out=([2], [0.5])),
        plots.interval_plot([(text, estimate)], title=text, x_label=text),
        plots.histogram([0.1, 0.2], title=text, x_label=text),
    ]


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", 'a" onload="x', "a & b", "]]>", "$x$", r"\frac"]
)
def test_plots_escape_labels_and_stay_well_formed(hostile: str) -> None:
    for svg in every_plot(hostile):
        names = {re.sub(r"\{.*\}", "", element.tag) for element in parsed(svg).iter()}
        assert names <= {"svg", "title", "text", "path", "use", "g", "defs", "clipPath", "rect"}
        assert hostile in texts(svg)
        assert hostile == titles(svg)[0]


def test_plots_take_every_color_and_the_font_from_the_page() -> None:
    for svg in every_plot("a plot"):
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {
            *(f"var(--plot-{name},{color})" for color, name in plots._VARIABLES.items()),
            "none",
        }
        assert "font-family" not in svg
        assert "<style" not in svg


def test_plots_are_the_same_every_time_and_share_no_id() -> None:
    first, second = every_plot("a plot"), every_plot("a plot")
    assert first == second
    identifiers = [
        element.get("id") for svg in first for element in parsed(svg).iter() if element.get("id")
    ]
    assert len(identifiers) == len(set(identifiers))
    for svg in first:
        own = {element.get("id") for element in parsed(svg).iter()}
        links = {use.get(XLINK, "")[1:] for use in parsed(svg).iter(SVG + "use")}
        assert links | set(re.findall(r"url\(#(.+?)\)", svg)) <= own


def test_plots_do_not_depend_on_the_users_style_and_leave_it_as_it_is() -> None:
    before = every_plot("a plot")
    with matplotlib.rc_context(
        {"font.size": 30, "lines.linewidth": 9, "axes.grid": True, "svg.fonttype": "path"}
    ):
        assert every_plot("a plot") == before
        assert matplotlib.rcParams["font.size"] == 30
