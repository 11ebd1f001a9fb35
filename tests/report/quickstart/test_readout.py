"""The halves that the swap is controlled by."""

from __future__ import annotations

from rdm.report.quickstart.readout import is_odd
from rdm.sources import open_source


def test_either_half_of_the_samples_is_halved_again() -> None:
    for half in ("database", "queries"):
        images = open_source(f"samples://openimages-birds/{half}").listing()["image_id"].to_pylist()
        share = sum(map(is_odd, images)) / len(images)
        assert 0.4 < share < 0.6
