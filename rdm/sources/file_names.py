"""File names are bytes, image ids are text: the same text in every locale, and the way back."""

from __future__ import annotations

import os
import re
from contextlib import suppress

# At a disk's root, and in macOS's archives.
_OF_THE_SYSTEM = frozenset({"lost+found", "__MACOSX"})
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is left out: hidden by a dot, or the system's own."""
    return name.startswith(".") or name in _OF_THE_SYSTEM


def text_of_name(name: bytes) -> str:
    r"""Return a name or a path as text: UTF-8, and `\xNN` for each byte that is none."""
    return name.decode("utf-8", "backslashreplace")


def file_below(root: str | os.PathLike[str], text: str) -> bytes:
    r"""Return the path of the file below a folder that `text_of_name` made a text of.

    A text with `\xNN` may stand for a name with exactly that, or with that byte: the one that
    exists is taken.
    """
    base, name = os.fsencode(root), text.encode("utf-8", "surrogateescape")
    path = os.path.join(base, name)
    if _ESCAPE.search(name) and not os.path.lexists(path):
        return os.path.join(base, _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), name))
    return path


def text_of_path(path: str) -> str:
    """Return a path as text that names the same file in every locale.

    Args:
        path: such a text already, or Python's text of bytes in this locale, as from the command
            line.
    """
    spellings = [path.encode("utf-8", "surrogateescape")]
    with suppress(UnicodeEncodeError):  # a text that this locale cannot write is not from it
        spellings.append(os.fsencode(path))
    return text_of_name(next(filter(os.path.lexists, spellings), spellings[0]))
