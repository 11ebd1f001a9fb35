"""Sources of photographs: how they are listed, read, cut, and stored for a database."""

from rdm.sources.http.client import FetchConfig
from rdm.sources.open import open_source
from rdm.sources.photographs.crops import CropConfig, crop_boxes
from rdm.sources.photographs.decode import ImageDecodeError, decode_image
from rdm.sources.query_set import QuerySet, QuerySetConfig
from rdm.sources.source import Source

__all__ = [
    "CropConfig",
    "FetchConfig",
    "ImageDecodeError",
    "QuerySet",
    "QuerySetConfig",
    "Source",
    "crop_boxes",
    "decode_image",
    "open_source",
]
