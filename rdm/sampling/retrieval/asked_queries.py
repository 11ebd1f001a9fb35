"""A request's queries: embedded, with their pools of neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdm.database.centers import cluster_centers
from rdm.encoders import normalize
from rdm.errors import UsageError
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.request.query_turn import TurnRecord
from rdm.sampling.request.sample_request import QueryKind, Request
from rdm.sampling.retrieval.neighbor_search import NeighborSearch, PatchAt, Pool
from rdm.sampling.retrieval.proposal import Proposal
from rdm.sampling.retrieval.queries import load_query_image, query_set_proposal
from rdm.sampling.retrieval.query_vectors import class_vectors, text_vectors
from rdm.sampling.retrieval.turned_queries import OpenedTurn, open_turn

OpenImage = Callable[[str], Image.Image]
"""Returns the picture that a request names."""

# unconditional queries at once: bounds the memory, and one pass over the vectors serves them all
_LOOKED_UP = 1024


@dataclass(frozen=True, eq=False)
class AskedQuery:
    """A query before its neighbors are chosen.

    Attributes:
        kind: of the query.
        label: in words.
        raw: its embedding [D] at the encoder's own length.
        unit: its unit vector [D].
        own: the patch that it is.
        pool: its nearest patches.
        image_sha256: of a query picture's pixels.
    """

    kind: QueryKind
    label: str
    raw: NDArray[np.float32]
    unit: NDArray[np.float32]
    own: PatchAt | None
    pool: Pool
    image_sha256: str = ""


class AskedQueries:
    """The queries of a request to a model that reads neighbors.

    Args:
        request: what is asked for.
        queries_digest: of the query set that defines p_D.
        search: finds neighbors.
        seeds: of the request.
        open_image: returns a picture by its name in the request; None: reads a file.

    Raises:
        SourceError: a query picture cannot be read.
    """

    def __init__(
        self,
        request: Request,
        queries_digest: str,
        search: NeighborSearch,
        seeds: Sequence[int],
        open_image: OpenImage | None,
    ) -> None:
        self._request, self._digest = request, queries_digest
        self._search, self._seeds = search, seeds
        # Read at once, so that a broken picture is refused before the first one is drawn.
        read = open_image or _read_image
        self._pictures = [read(name) for name in request.images]
        turn = request.turn
        self.turn: OpenedTurn | None = None
        if turn is not None:
            self.turn = open_turn(turn, search.first.encoder, read)
        self._block: tuple[int, list[AskedQuery]] = (-1, [])

    def unconditional(self, place: int) -> AskedQuery:
        """Return the unconditional query of the seed at a place."""
        # Blocks have fixed borders, so a resumed request looks up the same ones.
        block, row = divmod(place, _LOOKED_UP)
        if self._block[0] != block:
            some = self._seeds[block * _LOOKED_UP : (block + 1) * _LOOKED_UP]
            self._block = (block, self._proposed(some))
        return self._block[1][row]

    @cached_property
    def asked(self) -> list[AskedQuery]:
        """Every query but the unconditional ones, with its pool."""
        request, search = self._request, self._search
        encoder = search.first.encoder if {"text", "image", "class"} & request.kinds else None

        # In the order in which pictures are numbered: texts, pictures, classes, patches.
        found: list[AskedQuery] = []
        if request.texts and encoder is not None:
            raw = self._turned(text_vectors(encoder, request.texts))
            found += self._with_pools("text", request.texts, raw)

        # All of a kind at once: an encoder's batch costs little more than one.
        if self._pictures and encoder is not None:
            pixels = np.stack([encoder.preprocess(image) for image in self._pictures])
            raw = self._turned(encoder.encode_images(pixels))
            some = self._with_pools("image", request.images, raw)
            digests = [pixels_digest(np.asarray(image)) for image in self._pictures]
            pairs = zip(some, digests, strict=True)
            found += [replace(one, image_sha256=digest) for one, digest in pairs]

        # A class is several prompts, whose mean is looked up.
        if request.classes and encoder is not None:
            raw = self._turned(class_vectors(encoder, list(request.classes)))
            found += self._with_pools("class", request.classes, raw)

        # Patches need no encoder: their vectors are stored.
        if request.patches:
            own = [search.patch_at(patch) for patch in request.patches]
            found += self._of_patches("patch", own)
        if "neighbors" in request.kinds:
            # There is no query: similarities are to the mean of what was chosen.
            mean = search.vectors(search.include).mean(axis=0, keepdims=True)
            label = f"patches {', '.join(request.retrieval.include)}"
            found += self._with_pools("neighbors", [label], mean)
        return found

    @property
    def turn_record(self) -> TurnRecord | None:
        """What identifies the turn of the queries."""
        return None if self.turn is None else self.turn.record

    def _turned(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        return raw if self.turn is None else self.turn.of(raw)

    def _proposed(self, seeds: Sequence[int]) -> list[AskedQuery]:
        """Return an unconditional query for each seed: a patch of the proposal distribution."""
        drawn = self._proposal.draw(np.array(seeds, np.int64))
        name = self._search.names[0]
        return self._of_patches("unconditional", [(name, int(patch_id)) for patch_id in drawn])

    @cached_property
    def _proposal(self) -> Proposal:
        search = self._search
        excluded = search.excluded[search.names[0]]
        if self._request.centers is not None:
            ids = cluster_centers(search.first, self._request.centers, excluded)
            return Proposal(ids, np.ones(len(ids), np.int64))

        # Excluded before the likeliest are kept, so that a share is of what may be drawn.
        proposal = query_set_proposal(search.first, self._digest)
        left = proposal.without(excluded)
        if not len(left.ids):
            raise UsageError(
                "everything that p_D could draw is excluded",
                where=search.first.folder.url,
                fix="exclude less, or ask with a text",
            )
        return left.truncated(self._request.top_m)

    def _of_patches(self, kind: QueryKind, own: list[PatchAt]) -> list[AskedQuery]:
        if kind == "patch":
            for one in own:
                self._search.check_query_patch(one)
        first = self._search.names[0]
        # The last part of a folder's name: labels are shown, and travel in pictures.
        homes = [f" of {PurePath(name).name}" if name != first else "" for name, _ in own]
        labels = [f"patch {at[1]}{home}" for at, home in zip(own, homes, strict=True)]
        return self._with_pools(kind, labels, self._search.vectors(own), own)

    def _with_pools(
        self,
        kind: QueryKind,
        labels: Sequence[str],
        raw: NDArray[np.float32],
        own: Sequence[PatchAt] = (),
    ) -> list[AskedQuery]:
        search = self._search
        # What was stored is of unit length already, to the last bit that was stored.
        unit = search.vectors(own, "unit") if own else normalize(raw)
        is_token = self._request.retrieval.tokens == "query+neighbors"
        pools = search.pools(unit, own if is_token else ())
        patches = own or [None] * len(labels)
        rows = zip(labels, raw, unit, patches, pools, strict=True)
        return [AskedQuery(kind, *row) for row in rows]


def _read_image(name: str) -> Image.Image:
    return load_query_image(Path(name))
