"""Many files by one name: a folder's, or those of `{000..003}` and `*`, as in WebDataset."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from rdm.errors import SourceError
from rdm.sources.file_names import is_hidden

# Endings of downloads that are under way, of browsers and others.
_UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".download", ".aria2")


@dataclass(frozen=True)
class Expanded:
    """The files that a pattern names, sorted, without repeats; and names that lead to nothing."""

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

    # Braces first: each expansion must exist by itself, whatever the others match.
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


def files_below(folder: Path) -> list[Path]:
    """Return the files of a folder and of those below, sorted, without hidden ones.

    Raises:
        SourceError: a folder cannot be read. Its files must not seem to have vanished.
    """
    files: list[Path] = []
    for directory, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        files += [Path(directory, name) for name in names if not is_hidden(name)]
    return sorted(files)


def check_finished(files: Iterable[Path]) -> None:
    """Raise SourceError where a file's name says that it is still being fetched."""
    unfinished = next((file for file in files if file.name.lower().endswith(_UNFINISHED)), None)
    if unfinished is not None:
        raise SourceError(
            "a file is not whole: its name says that it is still being fetched",
            where=unfinished,
            fix="wait until it is whole, or remove it",
        )


def count_suffixes(files: Iterable[Path]) -> str:
    """Return how many files there are of each ending, the most frequent first, in words."""
    counts = Counter("".join(file.suffixes[-2:]) or file.name for file in files).most_common(6)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts) or "nothing"


def _raise_unreadable(error: OSError) -> None:
    raise SourceError(
        f"a folder cannot be read: {error.strerror}",
        where=error.filename,
        fix="mend its permissions or its disk",
    ) from error
