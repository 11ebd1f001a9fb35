"""Sizes of patches in pixels of their photographs, and advice where these are too small."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from rdm.config import Record
from rdm.database.contract import CORNERS
from rdm.sources import CropConfig
from rdm.storage import Folder

logger = logging.getLogger(__name__)
_MANY = 0.1  # share of patches from which on a warning is due
_MOST_ENLARGED = 2  # times: up to here an enlarged patch is sharp enough


class PatchSizes(Record):
    """The shorter sides of patches, in pixels of the upright photographs."""

    median: float
    least: int
    greatest: int
    enlarged: float
    """`crop.patch_size` divided by the median, where patches are of that size; else 1."""
    enlarged_share: float
    """Share of the patches that are enlarged more than twice."""

    @property
    def advice(self) -> str:
        """Advice for a database whose patches are enlarged much; empty where few are."""
        if self.enlarged_share < _MANY:
            return ""
        return (
            f"patches have {self.median:g} pixels of their photographs (median; {self.least} "
            f"to {self.greatest}): {self.enlarged_share:.0%} are enlarged more than twice to "
            "crop.patch_size. For small photographs give --preset whole (crop.mode=whole: one "
            "patch, the central square), or a crop.frame_size near their shorter side and a "
            "smaller crop.patch_size"
        )


def measure_patches(folder: Folder, paths: Sequence[str], crop: CropConfig) -> PatchSizes | None:
    """Measure the patches of some parts, and warn where they are small; None without patches."""
    # The shorter side: that is what enlarging goes by.
    tables = [folder.read_table(path, list(CORNERS)) for path in paths]
    widths = [table["x1"].to_numpy() - table["x0"].to_numpy() for table in tables]
    heights = [table["y1"].to_numpy() - table["y0"].to_numpy() for table in tables]
    sides = np.concatenate([np.zeros(0, np.int32), *map(np.minimum, widths, heights)])

    if len(sides) == 0:
        return None

    # Only crops of a fixed size are enlarged; boxes and whole squares are as they come.
    meant = crop.patch_size if crop.mode in ("random", "grid") else 0
    median = float(np.median(sides))
    sizes = PatchSizes(
        median=median,
        least=int(sides.min()),
        greatest=int(sides.max()),
        enlarged=round(max(1.0, meant / median), 2),
        enlarged_share=float((sides * _MOST_ENLARGED < meant).mean()),
    )

    if sizes.advice:
        logger.warning("%s", sizes.advice)
    return sizes
