"""Templates rendered: the environment with its filters, and numbers in words."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from rdm.config import format_bytes
from rdm.report.data import Estimate, recall_of
from rdm.report.html import images, plots
from rdm.storage.files import atomic_path

_MINUS = "\N{MINUS SIGN}"


def render(template: str, **values: Any) -> str:
    """Return a template of this package filled with values; everything is escaped.

    Raises:
        jinja2.UndefinedError: the template names a value that is not there.
    """
    return _environment().get_template(template).render(**values)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all: to a temporary file beside the target, then rename.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with atomic_path(Path(path)) as temporary:
        # A file name that is not valid UTF-8 may appear in the text; it shows as '?' instead of
        # failing the report.
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def duration(seconds: float) -> str:
    """Return a time in words: `0.42 s`, `12.4 s`, `3 min 05 s`, `2 h 04 min`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def number(value: float, digits: int = 4) -> str:
    """Return a number with significant digits and a real minus sign, or `not available`."""
    if not math.isfinite(value):
        return "not available"
    # Digits before the point count as significant ones; zero has no logarithm.
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    form = f",.{max(0, digits - 1 - magnitude)}f" if -5 < magnitude < 7 else f".{digits - 1}e"
    return format(value, form).replace("-", _MINUS)


def signed(value: float) -> str:
    """Return a difference with its sign and three significant digits."""
    return ("+" if value > 0 else "") + number(value, 3)


def interval(estimate: Estimate, digits: int = 4) -> str:
    """Return the 95% interval with significant digits."""
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def signed_interval(estimate: Estimate) -> str:
    """Return the 95% interval of a difference, both ends with their signs."""
    return f"{signed(estimate.low)} to {signed(estimate.high)}"


def large_count(value: int) -> str:
    """Return a count as `919`, `12,400` or `11.7 million`."""
    if value < 1_000_000:
        return f"{value:,}"
    return f"{value / 1e6:.3g} million" if value < 999_500_000 else f"{value / 1e9:.3g} billion"


def web_url(url: str) -> str:
    """Return an http or https URL, else an empty string: data cannot bring in a script."""
    return url if url.lower().startswith(("https://", "http://")) else ""


def pretty_json(value: Any) -> str:
    """Return indented JSON; values that JSON does not know appear as text."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rdm.report.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    # Names as templates use them.
    environment.filters.update(
        data_uri=images.data_uri,
        is_pixel_art=images.is_pixel_art,
        bytes=format_bytes,
        duration=duration,
        number=number,
        signed=signed,
        interval=interval,
        recall=recall_of,
        signed_interval=signed_interval,
        large_count=large_count,
        web_url=web_url,
        pretty_json=pretty_json,
    )
    environment.globals.update(plots=plots)
    return environment
