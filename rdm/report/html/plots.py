"""Small plots as SVG text, drawn by matplotlib: loss curve, interval plot, histogram.

Colors are CSS variables (`--plot-ink`, `--plot-muted`, `--plot-grid`, `--plot-paper`, `--plot-1` to
`--plot-3`) with fallbacks, so a page can theme them and a bare SVG still shows. Text stays text, in
the page's font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from rdm.report.data import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _PAPER = "#24221f", "#6b6862", "#e4e1da", "#fbfaf7"
_SERIES = ("#0b6e66", "#b4631a", "#6f6a80")
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _PAPER: "paper"} | dict(
    zip(_SERIES, "123", strict=True)
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": _MUTED,
    "text.parse_math": False,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _MUTED,
    "axes.titlesize": 12,
    "axes.titley": 1.0,  # else half of the time goes into finding it
    "axes.formatter.useoffset": False,
    "xtick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.pad": 6,
    "ytick.major.size": 0,
    "ytick.major.pad": 8,
    "grid.color": _GRID,
}
_CHAR_WIDTH = 6.4  # of 12 px sans-serif text, on average
_NARROW = 480  # pixels; below this width, row labels go above their row


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    *,
    title: str,
    y_label: str,
    held_out: tuple[Sequence[int], Sequence[float]] | None = None,
    log_x: bool = False,
    size: tuple[int, int] = (720, 300),
) -> str:
    """Return a plot of loss against training step: the records in light, their running mean on top.

    Args:
        steps: increasing; positive if `log_x`.
        losses: one per step; those that are not finite are left out and counted over the plot.
        title: what the plot shows, for those who do not see it.
        y_label: the loss and its unit.
        held_out: steps and losses of a second series, drawn as points.
        log_x: a logarithmic step axis.
        size: width and height in pixels.

    Raises:
        ValueError: the series differ in length, or no loss is finite.
    """
    x, y = _finite(steps, losses)
    held_x, held_y = _finite(*held_out) if held_out and len(held_out[0]) else (x[:0], y[:0])
    svg: list[str] = []
    with _axes(svg, title, size, left=48) as axes:
        # The mean of neighboring steps over the single losses.
        marker = "o" if len(x) == 1 else None  # a line through one point shows nothing
        axes.plot(*_thinned(x, y), color=_SERIES[0], alpha=0.32, linewidth=1)
        axes.plot(
            *_thinned(x, running_mean(y)),
            color=_SERIES[0],
            linewidth=2,
            marker=marker,
            markersize=6,
        )
        for a, b in zip(held_x, held_y, strict=True):
            name = f"held out, step {int(a):,}: {b:.4g}"
            axes.plot(a, b, "o", color=_SERIES[1], markersize=6, clip_on=False, gid=name)

        axes.set_xscale("log" if log_x else "linear")
        axes.margins(x=0 if len(x) > 1 else 0.05)
        axes.grid(axis="y")
        if num_missing := len(losses) - len(y):
            axes.set_title(f"{num_missing} records that are not finite left out", loc="right")
        _label(axes, "training step" + (" (logarithmic)" if log_x else ""), y_label, size[0])
    return svg[0]


def running_mean(values: NDArray[np.float64], reach: int | None = None) -> NDArray[np.float64]:
    """Return the mean of each record and up to `reach` records on either side.

    The window is centered, so that unlike an exponential mean it does not lag behind a loss that
    falls. At the start, where the loss falls fastest, it shrinks on both sides; at the end only on
    the right, so that the last value is not that of a single record.

    Args:
        values: float64 [N].
        reach: half the width of the window; 1/60 of the series if None.
    """
    count = len(values)
    position = np.arange(count)
    left = np.minimum(position, count // 60 if reach is None else reach)
    right = np.minimum(left, count - 1 - position)
    # Means as differences of one running sum: the cost does not depend on the width of the window.
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[position + right + 1] - sums[position - left]) / (left + right + 1)


def interval_plot(
    rows: Sequence[tuple[str, Estimate]],
    *,
    title: str,
    x_label: str,
    reference: float | None = None,
    width: int = 720,
) -> str:
    """Return one dot with a confidence whisker per row, on a common horizontal axis.

    Args:
        rows: label and estimate, top to bottom; at least one.
        title: what the plot shows, for those who do not see it.
        x_label: the quantity and its unit.
        reference: a value to mark with a dashed line, such as 0 for differences.
        width: in pixels.
    """
    narrow = width < _NARROW
    longest = max(len(label) for label, _ in rows)
    left = 20 if narrow else round(min(longest * _CHAR_WIDTH + 18, width * 0.42))
    max_chars = int(((width if narrow else left) - 12) / _CHAR_WIDTH)
    row_height = 46 if narrow else 32

    svg: list[str] = []
    with _axes(svg, title, (width, row_height * len(rows) + 52), left=left, top=8) as axes:
        for row, (label, estimate) in enumerate(rows):
            # Differences belong to no single condition, so they do not take the conditions' colors.
            _interval(
                axes,
                row,
                estimate,
                _SERIES[row % len(_SERIES)] if reference is None else _INK,
                label,
            )

            # The name stands beside its interval, or above it where the page is narrow.
            short = (
                label
                if len(label) <= max_chars
                else label[: max_chars - 1] + "\N{HORIZONTAL ELLIPSIS}"
            )
            place, up = -left / (width - left - 12), -0.32 if narrow else 0
            # keeps it legible over a grid line
            rim = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1}
            axes.text(
                place,
                row + up,
                short,
                color=_INK,
                va="center",
                bbox=rim,
                transform=axes.get_yaxis_transform(),
            )

        if reference is not None:
            axes.axvline(reference, color=_INK, linestyle=(0, (3, 3)), linewidth=1)
        axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=[])
        axes.grid(axis="x")
        _label(axes, x_label, "", width)
    return svg[0]


def histogram(
    values: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str = "count",
    num_bins: int = 30,
    size: tuple[int, int] = (720, 200),
) -> str:
    """Return a histogram with bins of equal width and counts from zero.

    Args:
        values: at least one; those that are not finite are left out.
        title: what the plot shows, for those who do not see it.
        x_label: the quantity and its unit.
        y_label: what is counted.
        num_bins: number of bins.
        size: width and height in pixels.
    """
    finite = np.asarray(values, np.float64)
    counts, edges = np.histogram(finite[np.isfinite(finite)], bins=num_bins)

    svg: list[str] = []
    with _axes(svg, title, size, left=48) as axes:
        bars = axes.bar(
            edges[:-1], counts, np.diff(edges) * 0.94, align="edge", color=_SERIES[0], alpha=0.75
        )
        for bar, count, start, stop in zip(bars, counts, edges[:-1], edges[1:], strict=True):
            # The `gid` becomes the id of a group in the SVG, which `_themed` turns into a tooltip.
            bar.set(gid=f"{start:.3g} to {stop:.3g}: {count:,}", visible=count > 0)
        axes.set_xlim(edges[0], edges[-1])
        axes.grid(axis="y")
        _label(axes, x_label, y_label, size[0])
    return svg[0]


@contextmanager
def _axes(
    svg: list[str], title: str, size: tuple[int, int], *, left: int, top: int = 26
) -> Iterator[Axes]:
    """Yield axes with margins in pixels; append the SVG of what was drawn when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    width, height = size
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style the user has chosen for plots of hers
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = f"{title} {size}"  # ids of its own in every plot
        figure = Figure((width / 72, height / 72), dpi=72)  # a pixel is a point
        figure.patch.set_visible(False)
        axes = figure.add_axes(
            (left / width, 44 / height, (width - left - 12) / width, (height - 44 - top) / height)
        )
        axes.patch.set_visible(False)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.set_axisbelow(True)
        yield axes
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg.append(_themed(text.getvalue(), title, size))


def _themed(svg: str, title: str, size: tuple[int, int]) -> str:
    """Return what matplotlib wrote with the page's colors and font, a title, and a name for
    whatever was given one."""
    # the first ones hold a style that would apply to the whole page
    body = svg.partition("</defs>")[2]
    body = re.sub(r'<(g|path) id="(?:[a-z.]+|line2d)_\d+"', r"<\1", body)  # the same in every plot
    body = re.sub(r'<g id="([^"]+)">', r"<g><title>\1</title>", body)
    body = re.sub(r" font-family: [^;]+;", "", body)

    # A tenth of a pixel is all that a page shows.
    body = re.sub(r'(?<= d=")[^"]+', lambda path: re.sub(r"(\.\d)\d+|\s*\n", r"\1", path[0]), body)
    for color, name in _VARIABLES.items():
        body = body.replace(color, f"var(--plot-{name},{color})")

    width, height = size
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'class="plot" role="img" '
        f'viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><title>{escape(title)}</title>{body}'
    )


def _label(axes: Axes, x_label: str, y_label: str, width: int) -> None:
    """Write the labels at the end of the x axis and above the plot, and as many ticks as there is
    room for."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_xlabel(x_label, loc="right")
    axes.set_title(y_label, loc="left", x=-48 / (width - 60))
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5 if width < _NARROW else 8, steps=[1, 2, 5, 10]))


def _interval(axes: Axes, row: int, estimate: Estimate, color: str, label: str) -> None:
    if not all(map(math.isfinite, (estimate.mean, estimate.low, estimate.high))):
        axes.text(0, row, "not available", va="center", transform=axes.get_yaxis_transform())
        return
    name = f"{label}: {estimate.mean:.4g}, 95% interval {estimate.low:.4g} to {estimate.high:.4g}"
    ends = [estimate.low, estimate.high]
    axes.plot(ends, [row, row], marker="|", markersize=10, color=color, linewidth=1.6, gid=name)
    axes.plot([estimate.mean], [row], "o", markersize=9, color=color, gid=name)


def _finite(
    steps: Sequence[int], losses: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(steps) != len(losses):
        raise ValueError(f"there are {len(steps)} steps and {len(losses)} losses")
    xs, ys = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    kept = np.isfinite(ys)
    if not kept.any():
        raise ValueError("a loss curve needs at least one finite loss")
    return xs[kept], ys[kept]


def _thinned(
    xs: NDArray[np.float64], ys: NDArray[np.float64], max_points: int = 800
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Keep the lowest and highest point of `max_points / 2` runs, so that no spike is lost."""
    if len(xs) <= max_points:
        return xs, ys
    kept: list[int] = []
    for run in np.array_split(np.arange(len(xs)), max_points // 2):
        # In the order of the steps: the line would run backwards otherwise.
        kept += sorted({int(run[ys[run].argmin()]), int(run[ys[run].argmax()])})
    return xs[kept], ys[kept]
