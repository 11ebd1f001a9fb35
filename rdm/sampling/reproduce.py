"""Draw a picture again from the recipe that it carries, and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from rdm.compute.threads import torch_threads
from rdm.database import RetrievalDatabase
from rdm.encoders import normalize
from rdm.errors import DatabaseError, ModelError, SourceError, UsageError
from rdm.generators.model_folder import Model
from rdm.generators.neighbor_vectors import conditioning_vectors
from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.drawing.draw import draw
from rdm.sampling.drawing.start import open_start
from rdm.sampling.neighbor_states import NeighborState, named_databases, neighbor_states
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.picture_file import Picture
from rdm.sampling.recipe.record import QueryRecord, SampleRecord, TokenRecord
from rdm.sampling.recipe.reproduction import Reproduction, compared
from rdm.sampling.recorder import database_reference, software_on
from rdm.sampling.request.query_turn import QueryTurn
from rdm.sampling.request.start_request import StartRecord, StartRequest
from rdm.sampling.retrieval.conditioning import (
    Conditioning,
    NegativeConditioning,
    TokenKind,
    Tokens,
)
from rdm.sampling.retrieval.queries import Query, load_query_image
from rdm.sampling.retrieval.query_vectors import class_vectors, text_vectors
from rdm.sampling.retrieval.turned_queries import open_turn
from rdm.storage import sha256_file


@dataclass(frozen=True, eq=False)
class Given:
    """What a recipe names by its digest and does not hold.

    Attributes:
        image: the query picture, where its embedding was a token.
        towards: the picture that such a query was turned to.
        start: file of the picture that drawing started from.
        mask: file of its mask.
        weaker: the model that autoguidance led away from.
    """

    image: Image.Image | None = None
    start: Path | None = None
    mask: Path | None = None
    weaker: str | None = None
    towards: Image.Image | None = None


def reproduce(
    picture: Picture,
    model: Model,
    databases: Sequence[RetrievalDatabase],
    given: Given = Given(),  # noqa: B008 - frozen
) -> tuple[NDArray[np.uint8], Reproduction]:
    """Draw a picture again, and return its pixels uint8 [H, W, 3] and how they compare.

    Patches are found by id and by the digest of their photograph, so that any version of a database
    will do that has them still.

    Args:
        picture: with its recipe.
        model: that drew it.
        databases: that its neighbors are of.
        given: what else it was drawn from.

    Raises:
        ModelError: the picture was drawn by another model.
        DatabaseError: a photograph was removed, or is not the one of the recipe.
        UsageError: a database or the query picture is not given.
        SourceError: the recipe does not say enough, or the query picture is another one.
    """
    record = picture.record
    _check_recipe(record)
    if record.model.digest != model.digest:
        raise ModelError(
            f"the picture was drawn by the model {record.model.name} {record.model.digest}, this "
            f"one is {model.digest}",
            where=model.directory,
            fix="--model with the model that drew it",
        )

    # All is checked before anything is drawn, which may take minutes.
    named = named_databases(record.databases, databases)
    for database in named.values():
        model.check_database(database)
    _check_neighbors(record, databases, named)

    conditioning = _conditioning(record, model, named, given)
    start = None if record.start is None else open_start(_start(record.start, given), model)
    assert record.batch is not None

    # Sums depend on threads, precision and the batch's shape: all are as they were.
    threads, precision = record.software.threads, record.software.precision
    with torch_threads(threads), model.generator.computing_in(precision):
        settings = _settings(record, model, given.weaker)
        row = record.batch.row
        (pixels,) = draw(model, [conditioning], settings, first_row=row, start=start)
        computed = software_on(model.device, model.generator.precision)

    # What differs in software explains pixels that do.
    differing = [
        f"{name} {then}, now {now}"
        for (name, then), (_, now) in zip(record.software, computed, strict=True)
        if then != now
    ]
    return pixels, compared(picture, pixels, differing)


def _check_recipe(record: SampleRecord) -> None:
    """Raise SourceError where a recipe does not say how its picture was drawn."""
    if record.metadata == "credits":
        raise SourceError(
            "the picture carries its credits alone, not what was asked for",
            fix="give the folder's other copy, or draw with --metadata full",
        )


def _check_neighbors(
    record: SampleRecord,
    databases: Sequence[RetrievalDatabase],
    named: Mapping[str, RetrievalDatabase],
) -> None:
    """Raise where a neighbor cannot be looked up any more, or is another one."""
    if lacking := [one for one in record.databases if one.name not in named]:
        raise UsageError(
            f"the picture was drawn from the database {lacking[0].name}, version "
            f"{lacking[0].version}, which is not given",
            fix="--database DIR, once for each",
        )

    # Photographs that are gone or replaced would condition another picture.
    for one in neighbor_states(record, databases):
        if one.state != "there":
            credit, place = one.credit, named[one.credit.database].folder.url
            raise DatabaseError(
                _GONE[one.state].format(patch=credit.patch_id, photograph=credit.image_id),
                where=place,
                fix=_FIXES.get(one.state, "--database with the one that it was drawn from"),
            )

    # Neighbors whose credits had no room are known by their ids alone.
    if record.neighbors_left_out:
        for reference in record.databases:
            if database_reference(named[reference.name]).digest != reference.digest:
                raise DatabaseError(
                    f"the picture has no room for {record.neighbors_left_out} of its neighbors, "
                    f"and the database is no longer at version {reference.version}",
                    where=named[reference.name].folder.url,
                    fix="open that version",
                )


_GONE: dict[NeighborState, str] = {
    "removed": "the photograph {photograph} was removed on request: no picture is drawn from it "
    "again",
    "deleted": "patch {patch} was deleted with its photograph {photograph}",
    "missing": "the database has no patch {patch}",
    "another": "patch {patch} is not of the photograph {photograph} that the picture was drawn "
    "from",
}
_FIXES: dict[NeighborState, str] = {
    "removed": "draw another picture from what is there",
    "deleted": "draw another picture from what is there",
}


def _conditioning(
    record: SampleRecord,
    model: Model,
    databases: Mapping[str, RetrievalDatabase],
    given: Given,
) -> Conditioning:
    """Return what conditioned a picture, with vectors looked up anew."""
    asked, seed = record.query, record.seed
    assert asked is not None
    assert seed is not None

    # Similarities of the query are for display, and drawing reads none of them.
    query = Query(
        asked.kind,
        asked.label,
        np.zeros(0, np.float32),
        np.array([one.patch_id for one in record.neighbors], np.int64),
        np.zeros(len(record.neighbors), np.float32),
        databases=tuple(one.database for one in record.neighbors),
    )

    # Tokens in the recorded order: attention does not care, but rounding does.
    tokens = negative = None
    if record.tokens:
        own = [_query_vector(asked, databases, given)] if _has_query(record.tokens) else []
        tokens = _tokens(record.tokens, model, databases, own)

    # A negative's texts are encoded anew: a recipe holds words, not vectors.
    if (away := record.negative) is not None:
        caption = ", ".join(away.texts) if model.reads_text else None
        own = []
        if _has_query(away.tokens):
            encoder = next(iter(databases.values())).encoder
            own = [text_vectors(encoder, [text])[0] for text in away.texts]
        of_tokens = _tokens(away.tokens, model, databases, own) if away.tokens else None
        negative = NegativeConditioning(of_tokens, caption, away.scale, away.texts)

    inversion = None
    if record.inversion is not None:
        inversion = _tokens(record.inversion.tokens, model, databases, [])
    return Conditioning(query, seed, tokens, negative, inversion=inversion)


def _has_query(tokens: Sequence[TokenRecord]) -> bool:
    return any(token.kind == "query" for token in tokens)


def _tokens(
    tokens: Sequence[TokenRecord],
    model: Model,
    databases: Mapping[str, RetrievalDatabase],
    own: Sequence[NDArray[np.float32]],
) -> Tokens:
    """Return tokens with their vectors.

    Args:
        tokens: as recorded.
        model: reads them.
        databases: by the recipe's names.
        own: raw vectors [D] of the tokens that are a query's own, in order.
    """
    config = model.config.conditions.neighbors
    assert config is not None
    vectors: list[NDArray[np.float32]] = []
    queries = iter(own)
    for token in tokens:
        if token.kind == "query":
            raw = next(queries)
            vectors.append(raw if config.embedding == "raw" else normalize(raw))
            continue
        database = databases[token.database]
        found = conditioning_vectors(database, np.array([token.patch_id]), config.embedding)
        vectors.append(found[0].astype(np.float32))
    kinds: tuple[TokenKind, ...] = tuple(token.kind for token in tokens)
    weights = np.array([token.weight for token in tokens], np.float32)
    return Tokens(np.stack(vectors), kinds, weights)


def _query_vector(
    query: QueryRecord, databases: Mapping[str, RetrievalDatabase], given: Given
) -> NDArray[np.float32]:
    """Return the raw embedding [D] of a query that was a token itself."""
    encoder = next(iter(databases.values())).encoder
    if query.kind == "text":
        vector = text_vectors(encoder, [query.label])[0]
    elif query.kind == "class":
        vector = class_vectors(encoder, [query.label])[0]
    elif query.kind == "image":
        image = _checked_picture(given.image, query.label, query.image_sha256, "--image")
        vector = encoder.encode_images(encoder.preprocess(image)[None])[0]
    else:
        raise SourceError(f"a query of kind {query.kind} has no embedding of its own")
    if (turn := query.turn) is None:
        return vector

    def open_image(name: str) -> Image.Image:
        return _checked_picture(given.towards, name, turn.image_sha256, "--towards-image")

    asked = QueryTurn(text=turn.text, image=turn.image, away=turn.away, fraction=turn.fraction)
    return open_turn(asked, encoder, open_image).of(vector[None])[0]


def _checked_picture(image: Image.Image | None, name: str, digest: str, option: str) -> Image.Image:
    """Return a query picture that was a token, or decided one."""
    if image is None:
        raise UsageError(
            f"the embedding of the query picture {name} was a token, and the picture is "
            "not in the recipe",
            fix=f"{option} with that picture; the SHA-256 of its pixels is {digest}",
        )
    if (found := pixels_digest(np.asarray(image))) != digest:
        raise SourceError(
            f"this is not the query picture {name}: the SHA-256 of its pixels is {found}, not "
            f"{digest}",
            where=option,
            fix="give the picture that was asked with",
        )
    return image


def _start(record: StartRecord, given: Given) -> StartRequest:
    """Return the start of a picture, from files that are the recorded ones."""
    places: dict[str, str | None] = {}
    for name, path, digest, of_pixels in (
        ("start", given.start, record.image_sha256, record.image_pixels_sha256),
        ("mask", given.mask, record.mask_sha256, record.mask_pixels_sha256),
    ):
        # Files have a digest of their bytes; pictures that were given open one of their pixels.
        if digest is None and of_pixels is None:
            continue
        if path is None:
            raise UsageError(
                f"drawing started from a picture, whose {name} is not in the recipe",
                where=record.image or "",
                fix=f"--{name} with the file of SHA-256 {digest}"
                if digest
                else f"--{name} with a file whose pixels have the SHA-256 {of_pixels}",
            )

        # Refused here: a similar file would start another picture without a word.
        if digest is None:
            found = pixels_digest(np.asarray(load_query_image(path)))
        else:
            found = sha256_file(path)
        if found != (digest or of_pixels):
            raise SourceError(
                f"this is not the file that drawing started from: its SHA-256 is {found}, not "
                f"{digest or of_pixels}",
                where=path,
                fix=f"--{name} with that file",
            )
        places[name] = str(path)

    # Recipes without mixed noise have no fraction; the request wants one.
    return StartRequest(
        image=places.get("start"),
        mask=places.get("mask"),
        strength=record.strength,
        outpaint=record.outpaint,
        invert=record.invert,
        towards=record.towards,
        fraction=0.5 if record.fraction is None else record.fraction,
    )


def _settings(record: SampleRecord, model: Model, weaker: str | None) -> SampleSettings:
    assert record.batch is not None
    fields = {**(record.settings or {}), "batch_size": record.batch.shape}

    # The recipe has the weaker model's digest, the settings its folder.
    recorded = fields.get("autoguidance")
    if recorded is not None:
        if weaker is None:
            raise UsageError(
                f"the picture was led away from a weaker model, {recorded}",
                fix="--weaker with its folder",
            )
        fields["autoguidance"] = weaker

    # The weaker model's digest is known only once it is open.
    try:
        settings = SampleSettings.model_validate(fields)
        if recorded is not None and (found := model.acting(settings)["autoguidance"]) != recorded:
            raise ModelError(
                f"the picture was led away from the model {recorded}, not from {found}",
                where=weaker or "",
                fix="--weaker with that model",
            )
        return settings
    except ValidationError as error:
        first = error.errors()[0]
        raise SourceError(
            f"the recipe's settings are of another release: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}",
            fix=f"draw it again with retrieval-diffusion {record.software.rdm}",
        ) from error
