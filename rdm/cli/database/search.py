"""`rdm database search` and `inspect`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rdm.cli.console import DeviceOption, JsonFlag, in_range, show, show_rows
from rdm.cli.database.options import Root
from rdm.config import Record
from rdm.errors import UsageError

if TYPE_CHECKING:
    from rdm.database import RetrievalDatabase
    from rdm.sampling.retrieval.queries import Query


class _FoundPatch(Record):
    """A patch that was found, and whose photograph it is from."""

    patch_id: int
    similarity: float
    image_id: str
    box: tuple[int, int, int, int]
    author: str
    title: str
    license: str
    landing_page: str
    url: str


def search(
    *,
    root: Root,
    text: Annotated[str | None, Parameter(help="what to look for, in words")] = None,
    image: Annotated[Path | None, Parameter(help="what to look for, as a picture file")] = None,
    k: Annotated[
        int, Parameter(name=["-k", "--k"], help="how many neighbors", validator=in_range(1))
    ] = 20,
    exact: Annotated[
        bool, Parameter(negative="", help="compare with every vector, do not ask the index")
    ] = False,
    gallery: Annotated[Path | None, Parameter(help="write the result as an HTML page")] = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> None:
    """Find the patches nearest to a text or a picture.

    Example: rdm database search --root birds --text "an owl at night" -k 5
    """
    from rdm.compute.device import compute_device, describe_device
    from rdm.database import RetrievalDatabase
    from rdm.sampling.retrieval.queries import image_queries, load_query_image, text_queries

    if (text is None) == (image is None):
        raise UsageError("give --text or --image, and only one of them", fix='--text "an owl"')

    database = RetrievalDatabase.open(root, device=device)
    if image is not None:
        query = image_queries(database, [load_query_image(image)], [str(image)], k, exact=exact)[0]
    else:
        query = text_queries(database, [str(text)], k, exact=exact)[0]

    # The page is written besides, whatever is printed.
    if gallery is not None:
        from rdm.report.html.database_pages import write_search_gallery

        write_search_gallery(gallery, database, query.label, query.neighbor_ids, query.similarities)

    found, used = _found_patches(database, query), describe_device(compute_device(device))
    if json:
        asked = {
            "query": query.label,
            "kind": query.kind,
            "version": database.version.number,
            "device": used,
        }
        show({**asked, "results": [patch.to_json() for patch in found]}, as_json=True)
    else:
        columns = ("patch_id", "similarity", "image_id", "box")
        shown = [[getattr(patch, column) for column in columns] for patch in found]
        show_rows(
            ["patch", "similarity", "image", "box"], shown, f"{query.label} (embedded on {used})"
        )


def _found_patches(database: RetrievalDatabase, query: Query) -> list[_FoundPatch]:
    return [
        _FoundPatch(
            patch_id=record.patch_id,
            similarity=round(float(similarity), 6),
            image_id=record.image_id,
            box=record.box,
            author=record.author,
            title=record.title,
            license=record.license,
            landing_page=record.landing_page,
            url=record.url,
        )
        for record, similarity in zip(
            database.records(query.neighbor_ids), query.similarities, strict=True
        )
    ]


def inspect(
    *,
    root: Root,
    patch: Annotated[int, Parameter(help="a patch id")],
    k: Annotated[int, Parameter(help="how many neighbors", validator=in_range(1))] = 12,
    out: Annotated[Path, Parameter(help="the HTML page to write")] = Path("patch.html"),
    json: JsonFlag = False,
) -> None:
    """Show a patch, its place in its photograph, whose it is, and its neighbors as an HTML page.

    Example: rdm database inspect --root birds --patch 17 --out patch.html
    """
    import numpy as np

    from rdm.database import RetrievalDatabase
    from rdm.report.html.database_pages import write_patch_page

    database = RetrievalDatabase.open(root)
    write_patch_page(out, database, patch, k)

    if json:
        record = database.records(np.array([patch]))[0]
        show({"page": out, "version": database.version.number, **asdict(record)}, as_json=True)
    else:
        sys.stdout.write(f"{out}\n")
