"""Small plots as SVG text, without a plotting library: loss curve, interval plot, histogram, horizontal bars.

Colors come from CSS variables (`--plot-ink`, `--plot-muted`, `--plot-grid`, `--plot-paper`, `--plot-1` to `--plot-3`)
with fallbacks, so a page can theme them and a bare SVG still shows. Every plot has a `<title>` that says what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from rdm.report.axes import Scale, padded, tick_label, tick_step
from rdm.report.data import Estimate

_INK, _MUTED = "var(--plot-ink,#24221f)", "var(--plot-muted,#6b6862)"
_GRID = "var(--plot-grid,#e4e1da)"
_SERIES = ("var(--plot-1,#0b6e66)", "var(--plot-2,#b4631a)", "var(--plot-3,#6f6a80)")
_CHAR_WIDTH = 6.4  # of 12 px sans-serif text, on average
_NARROW = 480  # below this width, row labels go above their row


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
    """Return a plot of the loss against the training step: the records in light, their running mean on top.

    Args:
        steps: increasing; positive if `log_x`.
        losses: one per step; those that are not finite are left out and counted under the plot.
        title: what the plot shows, for those who do not see it.
        y_label: the loss and its unit.
        held_out: steps and losses of a second series, drawn as points.
        log_x: a logarithmic step axis.
        size: width and height in pixels.

    Raises:
        ValueError: the series differ in length, or no loss is finite.
    """
    x_values, y_values = _finite(steps, losses)
    held_x, held_y = _finite(*held_out) if held_out and len(held_out[0]) else (x_values[:0], y_values[:0])
    all_x, all_y = np.concatenate([x_values, held_x]), np.concatenate([y_values, held_y])
    width, height = size
    low, high = (all_x.min(), all_x.max()) if all_x.min() < all_x.max() else padded(all_x.min() * 0.5, all_x.max() * 2)
    x = Scale(float(low), float(high), 48, width - 12, log=log_x)
    y = Scale(*padded(float(all_y.min()), float(all_y.max())), height - 44, 26)
    body = _grid(x, y, "training step" + (" (logarithmic)" if log_x else ""), y_label)
    body.append(_polyline(x, y, *_thinned(x_values, y_values), "raw", 1, 0.32))
    body.append(_polyline(x, y, *_thinned(x_values, running_mean(y_values)), "smooth", 2, 1.0))
    radius = 3.2 if width > _NARROW else 2.4
    body += [
        f'<circle class="held-out" cx="{x(a):.1f}" cy="{y(b):.1f}" r="{radius}" style="fill:{_SERIES[1]}">'
        f"<title>held out, step {int(a):,}: {b:.4g}</title></circle>"
        for a, b in zip(held_x, held_y, strict=True)
    ]
    if len(x_values) == 1:  # a line through one point shows nothing
        body.append(
            f'<circle class="single" cx="{x(x_values[0]):.1f}" cy="{y(y_values[0]):.1f}" r="{radius}" '
            f'style="fill:{_SERIES[0]}"/>'
        )
    num_missing = len(losses) - len(y_values)
    if num_missing:
        body.append(_text(width - 12, 20, f"{num_missing} records that are not finite left out", "end"))
    return _svg(title, size, body)


def running_mean(values: NDArray[np.float64], reach: int | None = None) -> NDArray[np.float64]:
    """Return the mean of each record and up to `reach` records on either side.

    The window is centered, so that unlike an exponential mean it does not lag behind a loss that falls. At the start,
    where the loss falls fastest, it shrinks on both sides; at the end only on the right, so that the last value is not
    that of a single record.

    Args:
        values: float64 [N].
        reach: half the width of the window; 1/60 of the series if None.
    """
    count = len(values)
    position = np.arange(count)
    left = np.minimum(position, count // 60 if reach is None else reach)
    right = np.minimum(left, count - 1 - position)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[position + right + 1] - sums[position - left]) / (left + right + 1)


def interval_plot(
    rows: Sequence[tuple[str, Estimate]], *, title: str, x_label: str, reference: float | None = None, width: int = 720
) -> str:
    """Return one dot with a confidence whisker per row, on a common horizontal axis.

    Args:
        rows: label and estimate, top to bottom; at least one.
        title: what the plot shows, for those who do not see it.
        x_label: the quantity and its unit.
        reference: a value to mark with a dashed line, such as 0 for differences.
        width: in pixels.
    """
    values = [v for _, e in rows for v in (e.mean, e.low, e.high) if math.isfinite(v)]
    values += [] if reference is None else [reference]
    left, row_height, first = _row_layout([label for label, _ in rows], width)
    x = Scale(*padded(min(values, default=0.0), max(values, default=1.0)), left, width - 16)
    bottom = first + row_height * (len(rows) - 1) + 22
    body = _x_axis(x, bottom, 8, x_label, max_ticks=5 if width < _NARROW else 7)
    if reference is not None:
        body.append(
            f'<line class="reference" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="8" y2="{bottom}" '
            f'style="stroke:{_INK};stroke-dasharray:3 3"/>'
        )
    for index, (label, estimate) in enumerate(rows):
        center = first + row_height * index
        body.append(_row_label(label, left, center, width))
        # Differences belong to no single condition, so they do not take the conditions' colors.
        color = _SERIES[index % len(_SERIES)] if reference is None else _INK
        body.append(_interval(x, estimate, center, color, label))
    return _svg(title, (width, bottom + 42), body)


def histogram(
    values: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str = "count",
    num_bins: int = 30,
    limits: tuple[float, float] | None = None,
    size: tuple[int, int] = (720, 200),
) -> str:
    """Return a histogram with bins of equal width and counts from zero.

    Args:
        values: at least one; those that are not finite or outside `limits` are left out.
        title: what the plot shows, for those who do not see it.
        x_label: the quantity and its unit.
        y_label: what is counted.
        num_bins: number of bins.
        limits: the ends of the first and the last bin; the range of the values if None.
        size: width and height in pixels.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    low, high = limits or (float(finite.min()), float(finite.max()))
    low, high = (low, high) if low < high else padded(low, high)
    counts, edges = np.histogram(finite, bins=num_bins, range=(low, high))
    width, height = size
    x = Scale(low, high, 48, width - 12)
    y = Scale(0.0, float(max(counts.max(), 1)) * 1.06, height - 44, 26)
    body = _grid(x, y, x_label, y_label)
    for count, start, stop in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            body.append(
                f'<rect class="bin" x="{x(start) + 0.5:.1f}" y="{y(count):.1f}" '
                f'width="{x(stop) - x(start) - 1:.1f}" height="{y(0) - y(count):.1f}" '
                f'style="fill:{_SERIES[0]};fill-opacity:0.75">'
                f"<title>{start:.3g} to {stop:.3g}: {count:,}</title></rect>"
            )
    return _svg(title, size, body)


def horizontal_bars(rows: Sequence[tuple[str, float, str]], *, title: str, width: int = 720) -> str:
    """Return one bar per row with its value in words at the end; lengths are proportional, from zero.

    Args:
        rows: label, value >= 0, and the value with its unit, top to bottom; at least one.
        title: what the plot shows, for those who do not see it.
        width: in pixels.
    """
    left, row_height, first = _row_layout([label for label, _, _ in rows], width)
    longest = max(len(text) for _, _, text in rows) * _CHAR_WIDTH + 10
    x = Scale(0.0, max(max(value for _, value, _ in rows), 1e-12), left, max(width - longest, left + 40))
    body = []
    for index, (label, value, text) in enumerate(rows):
        center = first + row_height * index
        length = max(x(value) - left, 1.0)
        body.append(_row_label(label, left, center, width))
        body.append(
            f'<rect class="bar" x="{left}" y="{center - 6}" width="{length:.1f}" height="12" rx="1.5" '
            f'style="fill:{_SERIES[0]}"><title>{escape(label)}: {escape(text)}</title></rect>'
        )
        body.append(_text(left + length + 8, center + 4, text, ink=True))
    return _svg(title, (width, first + row_height * (len(rows) - 1) + 18), body)


def _svg(title: str, size: tuple[int, int], body: Sequence[str]) -> str:
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-size="12"><title>{escape(title)}</title>' + "".join(body) + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", ink: bool = False) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{_INK if ink else _MUTED}">'
        f"{escape(text)}</text>"
    )


def _grid(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    """Draw horizontal grid lines with their values, the x axis, and the y label above the plot."""
    ticks = y.ticks(6)
    step = tick_step(y.low, y.high, 6)
    body = [_text(0, 12, y_label)]
    for tick in ticks:
        body.append(
            f'<line class="grid" x1="{x.start}" x2="{x.stop}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            f'style="stroke:{_GRID}"/>'
        )
        body.append(_text(x.start - 8, y(tick) + 4, tick_label(tick, step), "end"))
    return body + _x_axis(x, y.start, None, x_label, max_ticks=5 if x.stop < _NARROW else 8)


def _x_axis(x: Scale, bottom: float, top: float | None, label: str, max_ticks: int) -> list[str]:
    """Draw the x axis at `bottom`; with `top`, each tick gets a grid line up to there."""
    ticks = x.ticks(max_ticks)
    body = []
    for tick in ticks:
        step = tick if x.log else tick_step(x.low, x.high, max_ticks)
        end = bottom + 5 if top is None else top
        body.append(
            f'<line class="tick" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom}" y2="{end}" '
            f'style="stroke:{_GRID}"/>'
        )
        body.append(_text(x(tick), bottom + 18, tick_label(tick, step), "middle"))
    body.append(
        f'<line class="axis" x1="{x.start}" x2="{x.stop}" y1="{bottom}" y2="{bottom}" style="stroke:{_MUTED}"/>'
    )
    body.append(_text(x.stop, bottom + 36, label, "end"))
    return body


def _polyline(
    x: Scale, y: Scale, xs: NDArray[np.float64], ys: NDArray[np.float64], name: str, stroke_width: float, opacity: float
) -> str:
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))
    return (
        f'<polyline class="{name}" points="{points}" style="fill:none;stroke:{_SERIES[0]};stroke-opacity:{opacity};'
        f'stroke-width:{stroke_width};stroke-linejoin:round"/>'
    )


def _interval(x: Scale, estimate: Estimate, center: float, color: str, label: str) -> str:
    if not all(math.isfinite(v) for v in (estimate.mean, estimate.low, estimate.high)):
        return _text(x.start, center + 4, "not available")
    low, high = x(estimate.low), x(estimate.high)
    ends = "".join(f'<line x1="{end:.1f}" x2="{end:.1f}" y1="{center - 5}" y2="{center + 5}"/>' for end in (low, high))
    return (
        f'<g class="interval" style="stroke:{color};stroke-width:1.6"><title>{escape(label)}: {estimate.mean:.4g}, '
        f"95% interval {estimate.low:.4g} to {estimate.high:.4g}</title>"
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{center}" y2="{center}"/>{ends}'
        f'<circle cx="{x(estimate.mean):.1f}" cy="{center}" r="4.5" style="fill:{color};stroke:none"/></g>'
    )


def _row_layout(labels: Sequence[str], width: int) -> tuple[float, int, int]:
    """Return the left edge of the plot, the height of a row and the center of the first, in pixels."""
    if width < _NARROW:
        return 20.0, 46, 36
    return round(min(max(len(label) for label in labels) * _CHAR_WIDTH + 18, width * 0.42)), 32, 24


def _row_label(label: str, left: float, center: float, width: int) -> str:
    narrow = width < _NARROW
    max_chars = int(((width if narrow else left) - 12) / _CHAR_WIDTH)
    short = label if len(label) <= max_chars else label[: max_chars - 1] + "\N{HORIZONTAL ELLIPSIS}"
    text = _text(0, center - 15 if narrow else center + 4, short, ink=True)
    # A rim in the color of the page keeps a label legible where a grid line passes behind it.
    return text.replace('style="', 'style="paint-order:stroke;stroke:var(--plot-paper,#fbfaf7);stroke-width:5px;', 1)


def _finite(steps: Sequence[int], losses: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
    """Keep the lowest and the highest point of each of `max_points / 2` runs, so that no spike is lost."""
    if len(xs) <= max_points:
        return xs, ys
    kept: list[int] = []
    for run in np.array_split(np.arange(len(xs)), max_points // 2):
        kept += sorted({int(run[ys[run].argmin()]), int(run[ys[run].argmax()])})
    return xs[kept], ys[kept]
