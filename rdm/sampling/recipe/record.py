"""A picture's recipe: all that it was drawn from; in `samples.json` and in the PNG.

It names no folder of the machine that drew it, and holds no query picture and no vectors: a
photograph that is removed from its database must not live on in pictures' files.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rdm.config import Record
from rdm.generators.sample_settings import Setting
from rdm.sampling.request.query_turn import TurnRecord
from rdm.sampling.request.sample_request import QueryKind
from rdm.sampling.request.start_request import StartRecord

FORMAT = "rdm.recipe/1"
MAX_PNG_BYTES = 256 * 1024  # readers of PNGs refuse texts of a megabyte and more
_MAX_LABEL = 2000

Metadata = Literal["full", "credits"]
"""What a PNG carries: the whole recipe, or without what was asked for and how it was drawn."""


class Credit(Record):
    """A patch that conditioned a picture, and whose photograph it was cut from; texts are empty
    where the database does not know."""

    patch_id: int
    database: str = Field(default="", description="its name, as in `databases`")
    similarity: float | None = Field(
        description="to the query; None of what is led away from, or inverted under"
    )
    weight: float = Field(default=1.0, description="factor on the attention that it got")
    image_id: str
    title: str = ""
    author: str
    license: str = Field(description="its name, such as CC BY 2.0")
    license_url: str = ""
    url: str = Field(description="of the photograph's file, where it came from the web")
    landing_page: str = ""
    box: tuple[int, int, int, int]
    sha256: str = Field(default="", description="of the photograph's bytes")


class DatabaseReference(Record):
    """A database that neighbors were looked up in."""

    name: str
    version: int
    digest: str = Field(description="of the version: its parts, removals and settings")
    weight: float = 1.0


class ModelReference(Record):
    """The model that drew."""

    name: str = Field(description="assets://NAME, or the last part of its folder")
    digest: str = Field(description="16 hexadecimal digits of its files, first stage included")
    parameters: int | None = None


class EncoderReference(Record):
    """The encoder whose embeddings conditioned."""

    name: str
    digest: str


class SoftwareVersions(Record):
    """What computed: other versions, or another number of threads, may change the last bits."""

    rdm: str
    torch: str
    diffusers: str
    device: str
    precision: Literal["bf16", "fp32"]
    threads: int | None = Field(description="that shared each operation; None of a GPU")


class QueryRecord(Record):
    """What was asked for."""

    kind: QueryKind
    label: str = Field(description="the text, the file's name, the class, or the drawn patch")
    image_sha256: str = Field(default="", description="of a query picture's pixels, upright RGB")
    turn: TurnRecord | None = Field(default=None, description="of its vector to another query's")


class TokenRecord(Record):
    """An embedding that the network read: the query's own, or a patch's."""

    kind: Literal["query", "patch"]
    patch_id: int | None = None
    database: str = ""
    weight: float = 1.0


class NegativeRecord(Record):
    """What a picture was led away from."""

    texts: tuple[str, ...]
    tokens: tuple[TokenRecord, ...]
    neighbors: tuple[Credit, ...]
    scale: float | None = Field(description="None: the guidance scale less 1")


class InversionRecord(Record):
    """What the picture to start from was inverted under: its own nearest neighbors."""

    tokens: tuple[TokenRecord, ...]
    neighbors: tuple[Credit, ...]


class BatchPlace(Record):
    """Where in its batch a picture was drawn: kernels depend on the shape, in the last bits."""

    shape: int = Field(ge=1, description="rows of the batch, those that only filled it included")
    row: int = Field(ge=0)


class Attribution(Record):
    """How much each token had to do with the picture, in the order of `tokens`; 1 in sum."""

    attention: tuple[float, ...] | None = Field(
        default=None, description="share of the cross-attention in one pass"
    )
    influence: tuple[float, ...] | None = Field(
        default=None, description="Shapley values in the expected picture"
    )


class SampleRecord(Record):
    """One picture. `neighbors` are those that conditioned it, in the order of their tokens, and no
    others. With `metadata` credits, what was asked for and how it was drawn is left out."""

    format: Literal["rdm.recipe/1"] = FORMAT
    metadata: Metadata = "full"
    file: str
    query: QueryRecord | None
    seed: int | None
    databases: tuple[DatabaseReference, ...]
    tokens: tuple[TokenRecord, ...] = ()
    neighbors: tuple[Credit, ...]
    negative: NegativeRecord | None = None
    neighbors_left_out: int = Field(
        default=0, description="neighbors whose credits a PNG has no room for"
    )
    settings: dict[str, Setting] | None = Field(description="those that act on this kind of model")
    start: StartRecord | None = Field(
        default=None, description="a picture that was changed, or noise between two seeds"
    )
    inversion: InversionRecord | None = None
    model: ModelReference
    encoder: EncoderReference | None
    software: SoftwareVersions
    batch: BatchPlace | None
    size: tuple[int, int] = Field(description="width and height")
    pixels_sha256: str = Field(description="of the pixels, RGB, row after row")
    parents: tuple[str, ...] = Field(
        default=(), description="pixels_sha256 of the pictures that it was made from"
    )
    attribution: Attribution | None = None

    @property
    def looked_at(self) -> tuple[Credit, ...]:
        """The neighbors that conditioned the picture, those that it was led away from, and those
        that the picture to start from was inverted under."""
        others = [one for one in (self.negative, self.inversion) if one is not None]
        return self.neighbors + tuple(credit for one in others for credit in one.neighbors)

    def for_png(self, metadata: Metadata = "full") -> SampleRecord:
        """Return the recipe for a PNG, at most MAX_PNG_BYTES.

        Args:
            metadata: `credits` leaves out query, seed, settings, tokens and attribution.
        """
        changes: dict[str, object] = {"metadata": metadata}
        if metadata == "credits":
            gone = {"query": None, "seed": None, "settings": None, "batch": None}
            changes |= {**gone, "tokens": (), "attribution": None, "parents": ()}
            if self.negative is not None:
                gone = {"texts": (), "tokens": (), "scale": None}
                changes["negative"] = self.negative.model_copy(update=gone)
            if self.inversion is not None:
                changes["inversion"] = self.inversion.model_copy(update={"tokens": ()})
        elif self.query is not None:
            label = self.query.label[:_MAX_LABEL]
            changes["query"] = self.query.model_copy(update={"label": label})
        return self.model_copy(update=changes)._shortened()

    def _shortened(self) -> SampleRecord:
        """Return the recipe with as many of its neighbors, nearest first, as a PNG has room for."""
        short = self.model_copy(update={"neighbors": ()})
        kept: list[Credit] = []
        # 64 bytes for the number of neighbors left out and the brackets around the others.
        room = MAX_PNG_BYTES - len(_json(short)) - 64
        for credit in self.neighbors:
            room -= len(_json(credit)) + 1
            if room < 0:
                break
            kept.append(credit)
        left_out = len(self.neighbors) - len(kept)
        return short.model_copy(update={"neighbors": tuple(kept), "neighbors_left_out": left_out})


def _json(record: Record) -> bytes:
    return record.model_dump_json().encode()
