"""Files beside the pictures of a tar: a class in `KEY.cls`, captions in `KEY.json`, `KEY.txt`."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from rdm.errors import SourceError
from rdm.sources.captions import MAX_CAPTION_BYTES, captions_of_json, captions_of_text
from rdm.sources.file_names import text_of_name
from rdm.sources.kinds.local import read_file

_MOST_DIGITS = 12  # of a label, white space included

Members = Mapping[str, tarfile.TarInfo]
"""The visible files of a tar by path."""


def key_of(name: str) -> str:
    """Return the key of a member: its path without the ending, which all of a sample share."""
    return str(PurePosixPath(name).with_suffix(""))


def class_labels(tar: Path, members: Members) -> dict[str, int]:
    """Return the number in `KEY.cls` by key.

    Raises:
        SourceError: such a file holds something else.
    """
    return {key_of(name): _label(tar, member) for name, member in _ending(members, ".cls")}


def tar_captions(tar: Path, members: Members) -> dict[str, tuple[str, ...]]:
    """Return the captions by key: those of `KEY.json` if it has any, else those of `KEY.txt`.

    Raises:
        SourceError: a JSON file is damaged, its captions are no texts, or a file is too long.
    """
    found: dict[str, tuple[str, ...]] = {}
    # JSON comes last: its captions replace those of the text.
    for ending, read in ((".txt", captions_of_text), (".json", captions_of_json)):
        for name, member in _ending(members, ending):
            where = f"{tar}: {text_of_name(os.fsencode(member.name))}"
            if captions := read(_bytes_of(tar, member), where):
                found[key_of(name)] = captions
    return found


def _ending(members: Members, ending: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for name, member in members.items():
        if PurePosixPath(name).suffix.lower() == ending:
            yield name, member


def _label(tar: Path, member: tarfile.TarInfo) -> int:
    """Read one label; a file that is longer than any number is not read whole."""
    size = min(member.size, _MOST_DIGITS + 1)
    data = read_file(tar, start=member.offset_data, size=size)
    if size > _MOST_DIGITS or re.fullmatch(rb"\s*[0-9]+\s*", data) is None:
        raise SourceError(
            f"a label is no number of a class: {data!r}",
            where=f"{tar}: {text_of_name(os.fsencode(member.name))}",
            fix="write the number, from 0 on, into KEY.cls, or remove the file",
        )
    return int(data)


def _bytes_of(tar: Path, member: tarfile.TarInfo) -> bytes:
    """Return a member's bytes, cut one byte over the limit: the reader then refuses it."""
    size = min(member.size, MAX_CAPTION_BYTES + 1)
    return read_file(tar, start=member.offset_data, size=size)
