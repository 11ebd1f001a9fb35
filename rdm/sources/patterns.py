"""Names of many files in one: `{000..003}` and `*`, as WebDataset and img2dataset take them."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand


@dataclass(frozen=True)
class Expanded:
    """The files that a pattern names, sorted, without repeats; and the names that lead to nothing."""

    paths: list[Path]
    missing: list[Path]


def is_pattern(text: str) -> bool:
    """Return whether a path has braces or wildcards in it."""
    return any(mark in text for mark in "{*?[")


def fixed_part(pattern: str) -> Path:
    """Return the folder that all files of a pattern lie below."""
    path = Path(pattern)
    folders = [folder for folder in path.parents if not is_pattern(str(folder))]
    return folders[0] if folders else Path(path.anchor)


def expand_pattern(pattern: str) -> Expanded:
    """Return the files that `{a,b}`, `{000..003}` and `*`, `**`, `?`, `[ab]` in a path stand for.

    A wildcard that matches nothing counts as one missing name.
    """
    if not is_pattern(pattern):
        return Expanded([], [Path(pattern)])
    try:
        names = list(dict.fromkeys(braceexpand(pattern)))
    except ValueError:  # unbalanced braces
        names = [pattern]
    paths: dict[Path, None] = {}
    missing: list[Path] = []
    for name in names:
        found = glob.glob(name, recursive=True) if any(mark in name for mark in "*?[") else [name]
        files = [Path(path) for path in sorted(found) if Path(path).is_file()]
        paths.update(dict.fromkeys(files))
        missing += [] if files else [Path(name)]
    return Expanded(sorted(paths), missing)
