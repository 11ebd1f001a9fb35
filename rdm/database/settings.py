"""The settings of a database: which a version records, and which the first build fixes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from rdm.config import Config
from rdm.database.search.index_settings import IndexConfig
from rdm.encoders import EncoderName
from rdm.sources import CropConfig, FetchConfig
from rdm.sources.open import absolute_spec, same_source
from rdm.sources.photographs.boxes import BoxConfig
from rdm.sources.photographs.filters import FilterConfig
from rdm.storage import Version


class BuildConfig(Config):
    """Everything that decides what a database holds."""

    source: Annotated[str, AfterValidator(absolute_spec)] = Field(
        description="specification of the source, such as samples://openimages-birds/database"
    )
    encoder: EncoderName = Field(
        default="assets://encoder-lite", description="image and text encoder"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="number format of the image tower; auto: what is fast and good where the "
        "build runs",
    )
    crop: CropConfig = CropConfig()
    boxes: BoxConfig = BoxConfig()
    filters: FilterConfig = FilterConfig()
    index: IndexConfig = IndexConfig()
    images_per_shard: int = Field(default=1000, ge=1, le=10_000, description="photographs per tar")
    batch_size: int = Field(default=64, ge=1, description="patches encoded at once")
    min_success_rate: float = Field(
        default=0.9, ge=0, le=1, description="share of the photographs that must be usable"
    )
    tolerated_failures: int = Field(
        default=10,
        ge=0,
        description="photographs that may be unusable in an update, whatever their share",
    )
    max_vanished_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the photographs that may vanish from the source in an update, "
        "where 10 or more do; holds for one run and is not recorded",
    )
    max_delisted_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="the same where a list or a table of boxes says what there is, where "
        "more than 3 vanish: a damaged list looks like a shorter one",
    )
    fetch: FetchConfig = FetchConfig()


def recorded(config: BuildConfig) -> dict[str, JsonValue]:
    """Return the settings that a version and `run.json` record.

    The shares that may vanish are left out: they are permissions for one run.
    """
    return config.model_dump(mode="json", exclude={"max_vanished_share", "max_delisted_share"})


def settings_of(version: Version) -> BuildConfig:
    """Return the settings that made a version."""
    return BuildConfig.model_validate(version.config)


def has_changed(config: BuildConfig, parent: Version) -> bool:
    """Return whether a version records other settings."""
    before = settings_of(parent)
    # The precision is fixed, and `auto` agrees with any.
    precision = {"precision": config.precision}
    return recorded(before.model_copy(update=precision)) != recorded(config)


def differing_fixed(config: BuildConfig, parent: Version) -> list[str]:
    """Return the names of the settings that differ although the first build fixed them."""
    # Settings that decide the stored shards: other values would not fit the old ones.
    before = settings_of(parent)
    fixed = ("crop", "boxes", "filters", "images_per_shard")
    differing = [name for name in fixed if getattr(before, name) != getattr(config, name)]

    # A source may move to a mirror, and `auto` agrees with the precision of the first build.
    if not same_source(before.source, config.source):
        differing.append("source")
    if config.precision not in ("auto", parent.encoder.precision):
        differing.append("precision")
    return differing
