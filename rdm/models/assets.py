"""Trained networks that ship with the package: `assets://NAME` is the folder `rdm/assets/NAME`.

The first stage inside a model that ships is `assets://NAME/first_stage`.
"""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from rdm.errors import ModelError
from rdm.storage.files import absolute_path

ASSET_PREFIX = "assets://"


def is_asset(name: str) -> bool:
    """Return whether a name is of a network that ships."""
    return name.startswith(ASSET_PREFIX)


def named_folder(name_or_dir: str, marker: str, what: str) -> Path:
    """Return the folder that a name leads to.

    Args:
        name_or_dir: `assets://NAME`, or a folder; `~` is the home folder.
        marker: a file that every asset of the kind holds.
        what: the kind, for the error.

    Raises:
        ModelError: no asset of the kind has this name. A folder is not looked at.
    """
    if not is_asset(name_or_dir):
        return Path(name_or_dir).expanduser()

    # A name must not lead out of the assets; an unknown one lists those that ship.
    stem = name_or_dir.removeprefix(ASSET_PREFIX)
    root = Path(str(importlib.resources.files("rdm"))) / "assets"
    if not re.fullmatch(r"[a-z0-9-]+(/first_stage)?", stem) or not (root / stem / marker).is_file():
        places = [*root.glob(f"*/{marker}"), *root.glob(f"*/first_stage/{marker}")]
        known = sorted(path.parent.relative_to(root).as_posix() for path in places)
        raise ModelError(
            f"there is no embedded {what} {stem!r}",
            fix=f"embedded here: {', '.join(ASSET_PREFIX + name for name in known) or 'none'}",
        )
    return root / stem


def public_name(directory: Path) -> str:
    """Return the name of a folder that says nothing of the machine: `assets://NAME` of what ships,
    else its last part."""
    root = Path(str(importlib.resources.files("rdm"))) / "assets"
    if directory.is_relative_to(root):
        return ASSET_PREFIX + directory.relative_to(root).as_posix()
    return directory.resolve().name


def absolute_name(name_or_dir: str) -> str:
    """Return a name that opens from every directory: a folder's absolute path."""
    return name_or_dir if is_asset(name_or_dir) else absolute_path(name_or_dir)
