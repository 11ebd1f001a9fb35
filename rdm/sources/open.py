"""Opening sources by their specifications, such as `folder:///photos`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote_plus

from rdm.errors import UsageError
from rdm.sources.file_names import text_of_path
from rdm.sources.photographs.boxes import BoxConfig, Boxes
from rdm.sources.source import Source
from rdm.storage.files import absolute_path


def open_source(spec: str) -> Source:
    """Open the source that a specification names.

    Known forms: `samples://NAME[/database|/queries]`, `folder:///DIR`,
    `webdataset:///DIR_OR_TAR`, `database:///DB`, `urls:///LIST`,
    `openimages://SPLIT[?limit=N&ids=FILE&mirror=URL&metadata=URL]`.

    Raises:
        UsageError: the specification has no known scheme.
        SourceError: what it names does not exist.
    """
    # Each kind is imported when it is named, since some need packages of their own.
    scheme, separator, rest = spec.partition("://")
    if not separator or scheme not in _SCHEMES:
        hint = f"folder://{spec}" if "://" not in spec else ""
        raise UsageError(
            f"{spec!r} is not a source" + (f" (did you mean {hint}?)" if hint else ""),
            fix=f"sources: {', '.join(f'{name}://' for name in _SCHEMES)}",
        )
    return _SCHEMES[scheme](rest)


def absolute_spec(spec: str) -> str:
    """Return a specification that names the same files in every working directory."""
    scheme, separator, rest = spec.strip().partition("://")
    if scheme == "openimages":
        split, mark, query = rest.partition("?")
        return f"{scheme}://{split}{mark}{'&'.join(map(_absolute_option, query.split('&')))}"

    # Other schemes, and texts that are none, are left to `open_source`.
    if scheme not in _LOCAL or not separator or not rest:
        return spec
    return f"{scheme}://{text_of_path(absolute_path(rest))}"


def local_part(spec: str) -> str | None:
    """Return the absolute path of a specification's file or folder; None if it names none."""
    scheme, _, rest = spec.strip().partition("://")
    return absolute_path(rest) if scheme in _LOCAL and rest else None


def _absolute_option(option: str) -> str:
    """Return an option of Open Images with its path made absolute, if it has one."""
    name, _, value = option.partition("=")
    path = unquote_plus(value)
    if name not in ("ids", "metadata", "boxes") or not path or "://" in path or os.path.isabs(path):
        return option
    return f"{name}={quote(absolute_path(path))}"


def same_source(one: str, other: str) -> bool:
    """Return whether two specifications name the same photographs, wherever their bytes come from.

    A mirror of Open Images holds copies of what the metadata lists, and can be changed.
    """
    return _without_mirror(one) == _without_mirror(other)


def _without_mirror(spec: str) -> tuple[str, tuple[str, ...]]:
    base, _, query = spec.partition("?")
    if not base.startswith("openimages://"):
        return spec, ()
    return base, tuple(
        sorted(option for option in query.split("&") if option and not option.startswith("mirror="))
    )


def _samples(rest: str) -> Source:
    from rdm.sources.kinds.samples import SampleSource

    return SampleSource(rest)


def _folder(rest: str) -> Source:
    from rdm.sources.kinds.folder import FolderSource

    return FolderSource(rest)


def _webdataset(rest: str) -> Source:
    from rdm.sources.kinds.webdataset import WebDatasetSource

    return WebDatasetSource(rest)


def _database(rest: str) -> Source:
    from rdm.sources.kinds.database import DatabaseSource

    return DatabaseSource(rest)


def _urls(rest: str) -> Source:
    from rdm.sources.kinds.url_list import UrlListSource

    return UrlListSource(rest)


def _openimages(rest: str) -> Source:
    from rdm.sources.kinds.open_images import OpenImagesSource

    return OpenImagesSource(rest)


_LOCAL = frozenset({"folder", "webdataset", "database", "urls"})


_SCHEMES: dict[str, Callable[[str], Source]] = {
    "samples": _samples,
    "folder": _folder,
    "webdataset": _webdataset,
    "database": _database,
    "urls": _urls,
    "openimages": _openimages,
}


def open_boxes(source: Source, config: BoxConfig) -> Boxes:
    """Return the boxes of a source: those of the configured table, or Open Images' own.

    Raises:
        UsageError: no table is named, and the source has none of its own.
        SourceError: the table cannot be read.
    """
    if config.path:
        return Boxes(Path(config.path), config)
    from rdm.sources.kinds.open_images import OpenImagesSource

    if isinstance(source, OpenImagesSource):
        return Boxes(source.boxes_path(), config)
    raise UsageError(
        "this source has no boxes of its own", where=source.spec, fix="--set boxes.path=FILE"
    )
