"""Names of sources and encoders without the folders of a machine."""

from __future__ import annotations

from pathlib import Path


def portable_name(name: str) -> str:
    """Return the name of a source or an encoder with only the last part of an absolute path in it.

    `folder:///home/me/birds` becomes `folder://birds`, `open_clip:ViT-B-32//home/me/w.pt` becomes
    `open_clip:ViT-B-32/w.pt`; a name without a path stays as it is.
    """
    scheme, separator, rest = name.partition("://")
    if separator:
        path, question, query = rest.partition("?")
        kept = f"{question}{query}" if "/" not in query else ""
        return f"{scheme}://{_last_part(path)}{kept}"
    kind, colon, rest = name.partition(":")
    model, slashes, path = rest.partition("//")
    if slashes:
        return f"{kind}{colon}{model}/{_last_part('/' + path)}"
    return f"{kind}{colon}{_last_part(rest)}" if colon else _last_part(name)


def _last_part(path: str) -> str:
    return Path(path).name if path.startswith(("/", "~")) else path
