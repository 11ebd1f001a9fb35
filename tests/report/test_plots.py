import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rdm.report import plots
from rdm.report.data import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def with_class(svg: str, tag: str, name: str) -> list[ElementTree.Element]:
    return [element for element in parsed(svg).iter(SVG + tag) if element.get("class") == name]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(SVG + "text")]


def test_loss_curve_puts_points_at_exact_coordinates() -> None:
    svg = plots.loss_curve([0, 50, 100], [1.0, 0.5, 0.0], title="t", y_label="loss", size=(260, 170))
    # x: 0..100 on 48..248; y: -0.06..1.06 on 126..26.
    assert with_class(svg, "polyline", "raw")[0].get("points") == "48.0,31.4 148.0,76.0 248.0,120.6"


def test_loss_curve_with_logarithmic_steps_spaces_decades_evenly() -> None:
    svg = plots.loss_curve([1, 10, 100], [1.0, 1.0, 0.0], title="t", y_label="loss", log_x=True, size=(260, 170))
    points = with_class(svg, "polyline", "raw")[0].get("points") or ""
    assert [point.split(",")[0] for point in points.split()] == ["48.0", "148.0", "248.0"]
    assert "training step (logarithmic)" in texts(svg)


def test_loss_curve_counts_records_that_are_not_finite() -> None:
    svg = plots.loss_curve([1, 2, 3], [1.0, float("nan"), 0.5], title="t", y_label="loss")
    assert "1 records that are not finite left out" in texts(svg)
    assert "nan" not in svg


def test_loss_curve_shows_a_single_record_as_a_point() -> None:
    assert len(with_class(plots.loss_curve([1], [0.5], title="t", y_label="loss"), "circle", "single")) == 1


def test_loss_curve_draws_held_out_losses_as_points() -> None:
    svg = plots.loss_curve([0, 100], [1.0, 0.0], title="t", y_label="loss", held_out=([50], [0.5]), size=(260, 170))
    assert [(c.get("cx"), c.get("cy")) for c in with_class(svg, "circle", "held-out")] == [("148.0", "76.0")]


def test_loss_curve_without_a_finite_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        plots.loss_curve([1], [float("inf")], title="t", y_label="loss")


def test_loss_curve_of_many_records_stays_small_and_keeps_the_spike() -> None:
    losses = np.full(200_000, 0.5)
    losses[123_456] = 9.0
    svg = plots.loss_curve(range(200_000), losses.tolist(), title="t", y_label="loss", size=(260, 170))
    points = (with_class(svg, "polyline", "raw")[0].get("points") or "").split()
    assert len(points) <= 800
    assert min(float(point.split(",")[1]) for point in points) == pytest.approx(26 + 100 * 0.06 / 1.12, abs=0.1)
    assert len(svg) < 40_000


def test_running_mean_is_centered_and_shrinks_at_the_ends() -> None:
    assert plots.running_mean(np.array([0.0, 3.0, 6.0, 9.0]), reach=1).tolist() == [0.0, 3.0, 6.0, 7.5]


def test_running_mean_of_a_falling_line_does_not_lag() -> None:
    line = np.linspace(5.0, 1.0, 101)
    np.testing.assert_allclose(plots.running_mean(line, reach=10)[:91], line[:91])


def test_interval_plot_puts_dot_and_whisker_at_exact_coordinates() -> None:
    svg = plots.interval_plot([("a", Estimate(0.5, 0.0, 1.0))], title="t", x_label="loss", width=600)
    # x: -0.06..1.06 on 24..584.
    circle = next(parsed(svg).iter(SVG + "circle"))
    whisker = next(with_class(svg, "g", "interval")[0].iter(SVG + "line"))
    assert (circle.get("cx"), circle.get("cy")) == ("304.0", "24")
    assert (whisker.get("x1"), whisker.get("x2")) == ("54.0", "554.0")


def test_interval_plot_marks_the_reference() -> None:
    svg = plots.interval_plot([("a", Estimate(1.0, 1.0, 1.0))], title="t", x_label="d", reference=0.0, width=600)
    line = with_class(svg, "line", "reference")[0]
    assert line.get("x1") == line.get("x2") == "54.0"


def test_interval_plot_says_which_estimate_is_missing() -> None:
    missing = Estimate(float("nan"), float("nan"), float("nan"))
    assert "not available" in texts(plots.interval_plot([("a", missing)], title="t", x_label="loss"))


def test_interval_plot_shortens_long_labels() -> None:
    svg = plots.interval_plot([("label " * 40, Estimate(0.5, 0.4, 0.6))], title="t", x_label="loss", width=350)
    assert any(text.endswith("\N{HORIZONTAL ELLIPSIS}") and len(text) < 60 for text in texts(svg))


def test_histogram_bars_have_heights_proportional_to_counts() -> None:
    svg = plots.histogram([0.1, 0.2, 0.9], title="t", x_label="x", num_bins=2, limits=(0.0, 1.0), size=(260, 176))
    # y: 0..2.12 on 132..26, so one count is 50 pixels; x: 0..1 on 48..248.
    bars = [(b.get("x"), b.get("width"), b.get("y"), b.get("height")) for b in with_class(svg, "rect", "bin")]
    assert bars == [("48.5", "99.0", "32.0", "100.0"), ("148.5", "99.0", "82.0", "50.0")]


def test_histogram_of_equal_values_has_one_bar() -> None:
    assert len(with_class(plots.histogram([0.5] * 7, title="t", x_label="x"), "rect", "bin")) == 1


def test_horizontal_bars_are_proportional_from_zero() -> None:
    svg = plots.horizontal_bars([("a", 10.0, "10 s"), ("b", 5.0, "5 s")], title="t", width=600)
    first, second = (float(bar.get("width") or 0) for bar in with_class(svg, "rect", "bar"))
    assert first == pytest.approx(2 * second, abs=0.1)
    assert "10 s" in texts(svg)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", 'a" onload="x', "a & b", "]]>"])
def test_plots_escape_labels_and_stay_well_formed(hostile: str) -> None:
    estimate = Estimate(0.5, 0.4, 0.6)
    for svg in (
        plots.loss_curve([1, 2], [1.0, 0.5], title=hostile, y_label=hostile),
        plots.interval_plot([(hostile, estimate)], title=hostile, x_label=hostile),
        plots.histogram([0.1, 0.2], title=hostile, x_label=hostile),
        plots.horizontal_bars([(hostile, 1.0, hostile)], title=hostile),
    ):
        names = {re.sub(r"\{.*\}", "", element.tag) for element in parsed(svg).iter()}
        assert names <= {"svg", "title", "text", "line", "polyline", "circle", "rect", "g"}
        assert hostile in texts(svg) or hostile == parsed(svg)[0].text
