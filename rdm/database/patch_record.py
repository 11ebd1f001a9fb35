"""`PatchRecord`: whose photograph a patch is from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PatchRecord:
    """One patch: where it was cut, and whose photograph it is from.

    Attributes:
        patch_id: given once.
        image_id: the photograph's id in its source.
        url: where the photograph came from; of a local source the file's name.
        author: empty where the source does not say, as are the next three.
        title: of the photograph.
        license: a URL or a name.
        landing_page: the photograph's page.
        sha256: of the photograph's bytes, in hexadecimal digits.
        box: x0, y0, x1, y1 in pixels of the upright photograph.
    """

    patch_id: int
    image_id: str
    url: str
    author: str
    title: str
    license: str
    landing_page: str
    sha256: str
    box: tuple[int, int, int, int]
