"""A recipe as `rdm sample` writes it, for tests of what is done with one."""

from __future__ import annotations

from rdm.sampling.recipe.record import SampleRecord

BY = "https://creativecommons.org/licenses/by/2.0/"


def neighbor(number: int, **changes: object) -> dict[str, object]:
    """Return the credit of patch `number`."""
    fields = {
        "patch_id": number,
        "database": "birds",
        "similarity": 1 / (number + 1),
        "image_id": f"i{number}",
        "title": f"A crow, {number}",
        "author": "Zoë 写",
        "license": "CC BY 2.0",
        "license_url": BY,
        "url": f"https://example.org/{number}.jpg",
        "landing_page": f"https://example.org/{number}",
        "box": (0, 1, 2, 3),
        "sha256": f"{number:064x}",
    }
    return {**fields, **changes}


def recipe(num_neighbors: int = 3, **changes: object) -> SampleRecord:
    """Return a recipe of a text with so many neighbors."""
    fields = {
        "file": "00000.png",
        "query": {"kind": "text", "label": "an owl"},
        "seed": 7,
        "databases": [{"name": "birds", "version": 3, "digest": "d1d1"}],
        "tokens": [
            {"kind": "patch", "patch_id": n, "database": "birds"} for n in range(num_neighbors)
        ],
        "neighbors": [neighbor(number) for number in range(num_neighbors)],
        "settings": {"k": num_neighbors},
        "model": {"name": "model", "digest": "0123456789abcdef", "parameters": 12},
        "encoder": {"name": "assets://encoder-lite", "digest": "e1e1"},
        "software": {
            "rdm": "0.1.0",
            "torch": "2.9.0",
            "diffusers": "0.42.1",
            "device": "cpu",
            "precision": "fp32",
            "threads": 2,
        },
        "batch": {"shape": 4, "row": 1},
        "size": (4, 4),
        "pixels_sha256": "f" * 64,
    }
    return SampleRecord.model_validate({**fields, **changes})
