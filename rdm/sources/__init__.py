"""Where photographs come from, how they are cut, and how they are laid down for a database."""

from rdm.sources.crops import CropConfig, crop_boxes
from rdm.sources.decode import ImageDecodeError, decode_image
from rdm.sources.listing import Source, open_source
from rdm.sources.queryset import QuerySet, QuerySetConfig
from rdm.sources.transfer import FetchConfig

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
