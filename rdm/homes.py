"""Where libraries may keep caches and settings of the user: her home, or a folder of this user's
where it cannot be written, as in a container whose user has no home.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

# Folders of libraries that can be put elsewhere one by one; without the variable each is below the
# home.
_OWN_FOLDERS = (
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "DASK_CONFIG",
    "HF_HOME",
    "HF_HUB_CACHE",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
    "RDM_CACHE",
    "TORCH_EXTENSIONS_DIR",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TRITON_HOME",
)
REPLACED: dict[str, str] = {}
"""What `use_writable_homes` changed in this process's environment."""

_BELOW_HOME = {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config"}


def is_writable(folder: Path) -> bool:
    """Return whether a folder can be written, or made, by trying it: nothing is left behind."""
    made: list[Path] = []
    try:
        for place in reversed([folder, *folder.parents]):
            if not os.path.exists(place):
                place.mkdir()
                made.append(place)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
    finally:
        for place in reversed(made):
            with suppress(OSError):
                place.rmdir()


def writable_homes(environment: Mapping[str, str], own: Path) -> dict[str, str]:
    """Return what to change in an environment so that libraries find folders that they can write.

    A variable that names a folder of one library is emptied where that cannot be written, and so
    leads to the home.

    Args:
        environment: HOME, XDG_CACHE_HOME and the like.
        own: a folder that may take the place of the home; it is not made here.
    """
    changes = dict(_unwritable(environment))
    # the password file's, where there is one
    home = environment.get("HOME") or os.path.expanduser("~")
    if not (os.path.isabs(home) and is_writable(Path(home))):
        home = changes["HOME"] = str(own)
    elif "HOME" not in environment:
        changes["HOME"] = home

    # Variables that point below the home follow it; one that points elsewhere must be writable.
    for name, below in _BELOW_HOME.items():
        place = environment.get(name) or f"{home}/{below}"
        if home != str(own) and not is_writable(Path(place)):
            changes[name] = f"{own}/{below}"
        elif home == str(own) and name in environment and not is_writable(Path(place)):
            changes[name] = f"{home}/{below}"
    return changes


def _unwritable(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in _OWN_FOLDERS:
        if environment.get(name) and not is_writable(Path(environment[name])):
            yield name, ""


def own_home(temporary: Path) -> Path:
    """Return this user's own cache folder below the temporary files, for unwritable homes."""
    place = temporary / f"rdm-home-{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    status = place.lstat()
    if (
        status.st_uid == os.getuid()
        and not status.st_mode & 0o022
        and place.is_dir()
        and not place.is_symlink()
    ):
        return place
    return Path(tempfile.mkdtemp(prefix="rdm-home-", dir=temporary))  # somebody else took the name


def use_writable_homes() -> None:
    """Change this process's environment, and its children's, where homes cannot be written."""
    temporary = Path(tempfile.gettempdir())
    if not writable_homes(os.environ, temporary / "rdm-home"):
        return
    changes = writable_homes(os.environ, own_home(temporary))
    REPLACED.update(changes)
    for name, value in changes.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
