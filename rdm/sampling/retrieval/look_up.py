"""From a request to what conditions each of its pictures: the half of sampling that asks
databases, and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.model_folder import Model, ModelInfo
from rdm.sampling.request.asked import check_asked, no_database
from rdm.sampling.request.sample_request import (
    Request,
    RequestIdentity,
    Retrieval,
    WeightedDatabase,
)
from rdm.sampling.request.seeds import format_seeds, parse_seeds
from rdm.sampling.retrieval.asked_queries import AskedQueries, AskedQuery, OpenImage
from rdm.sampling.retrieval.conditioning import (
    Conditioning,
    NegativeConditioning,
    TokenKind,
    Tokens,
)
from rdm.sampling.retrieval.neighbor_search import Chosen, NeighborSearch
from rdm.sampling.retrieval.queries import Query, null_queries, plain_queries
from rdm.storage import sha256_file


def look_up(
    request: Request,
    info: ModelInfo,
    databases: Mapping[str, RetrievalDatabase],
    *,
    open_image: OpenImage | None = None,
) -> list[Conditioning]:
    """Return what conditions each picture of a request, in their order; nothing is drawn.

    Arguments and errors as `LookUp`, which takes requests of any length a slice at a time.
    """
    looked_up = LookUp(request, info, databases, open_image=open_image)
    return looked_up.rows(0, len(looked_up))


class LookUp:
    """What conditions the pictures of a request; a slice is looked up when it is asked for.

    The order is: each text, image, class and patch with every seed, then the unconditional ones.

    Args:
        request: what is asked for.
        info: of the model that will draw; its network is not needed.
        databases: open ones by the request's names for them; the first serves a request that names
            none.
        open_image: returns a picture by its name in the request; None: reads a file.

    Raises:
        UsageError: nothing is asked for, what the model cannot be asked, too few neighbors are
            left, or a name or number says nothing here.
        EncoderMismatchError: a database and the model do not belong to the same encoder.
        DatabaseError: a patch was deleted or never there, or p_D is not known.
        SourceError: a query picture cannot be read.
    """

    def __init__(
        self,
        request: Request,
        info: ModelInfo,
        databases: Mapping[str, RetrievalDatabase],
        *,
        open_image: OpenImage | None = None,
    ) -> None:
        if not request.kinds:
            raise UsageError(
                "nothing to sample",
                fix='give --text "...", --image FILE, --class NAME, --patch ID, --neighbor ID or '
                "--unconditional",
            )

        # Before anything is encoded: an encoder takes seconds to open.
        check_asked(info, next(iter(databases.values()), None), request.kinds, request.classes)
        self.request, self.info = request, info
        self.seeds = parse_seeds(request.seeds)

        self._search: NeighborSearch | None = None
        self._queries: AskedQueries | None = None
        self._open_image = open_image

        # A model without neighbors has nothing to search, and no use for settings of a search.
        if info.reads_neighbors:
            if info.reads_text and request.turn is not None and request.texts:
                raise UsageError(
                    "the model reads the text itself beside its neighbors, and a text is not "
                    "turned to another one",
                    where="turn",
                    fix="ask with an image or a class, or a model that reads neighbors alone",
                )
            if not databases:
                raise no_database()
            search = NeighborSearch(request, info, databases)
            digest = info.queries_digest or ""
            self._search = search
            self._queries = AskedQueries(request, digest, search, self.seeds, open_image)
        else:
            _check_idle(request)

    def __len__(self) -> int:
        return self._num_asked + (len(self.seeds) if self.request.unconditional else 0)

    def rows(self, start: int, stop: int) -> list[Conditioning]:
        """Return what conditions the pictures start .. stop - 1, fewer at the end."""
        numbers = range(start, min(stop, len(self)))
        if self._search is None:
            return [self._plain(number) for number in numbers]
        asked = [self._asked_at(number) for number in numbers]
        return self._conditioned(self._search, asked, self._negative)

    def check(self) -> None:
        """Look up the first picture of each query, so that what cannot be had is refused before
        anything is written."""
        firsts = [*range(0, self._num_asked, len(self.seeds))]
        if self.request.unconditional:
            firsts.append(self._num_asked)
        for number in firsts:
            self.rows(number, number + 1)
        # Which neighbors of a pool a picture gets is its seed's choice, so each is asked.
        if self._search is not None and self._search.may_weigh_nothing:
            for number in range(len(self)):
                self._chosen(self._search, *self._asked_at(number))

    @property
    def databases(self) -> Mapping[str, RetrievalDatabase]:
        """The request's databases by name; none of a model that reads no neighbors."""
        return {} if self._search is None else self._search.databases

    @property
    def _num_asked(self) -> int:
        request = self.request
        num_queries = len((*request.texts, *request.images, *request.classes, *request.patches)) + (
            "neighbors" in request.kinds
        )
        return num_queries * len(self.seeds)

    def _plain(self, number: int) -> Conditioning:
        """Return what conditions a picture of a model that reads no neighbors."""
        request = self.request
        if number >= self._num_asked:
            seed = self.seeds[number - self._num_asked]
            return Conditioning(null_queries([seed])[0], seed, None, self._negative)
        place, row = divmod(number, len(self.seeds))
        queries = plain_queries("text", request.texts) + plain_queries("class", request.classes)
        return Conditioning(queries[place], self.seeds[row], None, self._negative)

    def _asked_at(self, number: int) -> tuple[AskedQuery, int]:
        assert self._queries is not None
        if number < self._num_asked:
            place, row = divmod(number, len(self.seeds))
            return self._queries.asked[place], self.seeds[row]
        place = number - self._num_asked
        return self._queries.unconditional(place), self.seeds[place]

    def _conditioned(
        self,
        search: NeighborSearch,
        asked: Sequence[tuple[AskedQuery, int]],
        negative: NegativeConditioning | None,
    ) -> list[Conditioning]:
        """Return what conditions pictures, from their queries and seeds."""
        chosen = [self._chosen(search, one, seed) for one, seed in asked]
        # One read for all: norms are in Parquet, of which a whole part is read at a time.
        vectors = iter(search.vectors([at for some in chosen for at in some.patches]))

        result: list[Conditioning] = []
        for (one, seed), some in zip(asked, chosen, strict=True):
            values = [next(vectors) for _ in some.patches]
            kinds: list[TokenKind] = ["patch"] * len(values)
            weights = list(some.weights)
            if one.own is None and self.request.retrieval.tokens != "neighbors":
                values, weights = [search.token_of(one.raw), *values], [1.0, *weights]
                kinds = ["query", *kinds]

            tokens = Tokens(
                np.stack(values), tuple(kinds), np.array(weights, np.float32), some.patches
            )
            query = self._query(one, some)
            result.append(
                Conditioning(
                    query,
                    seed,
                    tokens,
                    negative,
                    one.image_sha256,
                    None if self._queries is None else self._queries.turn_record,
                    self._inversion,
                )
            )
        return result

    def _chosen(self, search: NeighborSearch, one: AskedQuery, seed: int) -> Chosen:
        by_hand = list(search.include)
        if one.own is not None and self.request.retrieval.tokens != "neighbors":
            # A patch is its own token, and credited as one.
            by_hand = [one.own, *by_hand]
        return search.choose(one.pool, seed, by_hand, one.unit)

    def _query(self, one: AskedQuery, some: Chosen) -> Query:
        several = len(self.request.retrieval.databases) > 1
        return Query(
            one.kind,
            one.label,
            one.unit,
            np.array([patch_id for _, patch_id in some.patches], np.int64),
            some.similarities,
            weights=some.weights if any(weight != 1 for weight in some.weights) else (),
            databases=tuple(name for name, _ in some.patches) if several else (),
        )

    @cached_property
    def _negative(self) -> NegativeConditioning | None:
        """What every picture of the request is led away from."""
        asked, search = self.request.retrieval.negative, self._search
        if asked is None:
            return None
        caption = ", ".join(asked.texts) if self.info.reads_text else None
        if search is None:
            if not caption or asked.patches:
                raise UsageError(
                    "the model reads no neighbors, so it cannot be led away from any",
                    where="negative",
                    fix="leave the negative out, or ask a model of another recipe",
                )
            return NegativeConditioning(None, caption, asked.scale, asked.texts)

        # Removed photographs condition nothing, not even as what to avoid.
        patches = [search.patch_at(patch) for patch in asked.patches]
        for name, patch_id in patches:
            search.databases[name].require_living(np.array([patch_id]))
        values = [*search.vectors(patches)]
        kinds: list[TokenKind] = ["patch"] * len(values)
        weights = [1.0] * len(values)
        # A negative text is looked up as the texts of the request are, but for patches by hand,
        # pools and weights, which are the pictures' own.
        if asked.texts:
            plain = self.request.retrieval.model_copy(
                update={"negative": None, "include": (), "pool": None, "weights": {}}
            )
            request = Request(
                texts=asked.texts, seeds="0", retrieval=plain, settings=self.request.settings
            )
            for one in LookUp(request, self.info, search.databases).rows(0, len(asked.texts)):
                assert one.tokens is not None
                values += [*one.tokens.values]
                patches += one.tokens.patches
                kinds += one.tokens.kinds
                weights += one.tokens.weights.tolist()
        tokens = Tokens(
            np.stack(values), tuple(kinds), np.array(weights, np.float32), tuple(patches)
        )
        return NegativeConditioning(tokens, caption, asked.scale, asked.texts)

    @cached_property
    def _inversion(self) -> Tokens | None:
        """What the picture to start from is inverted under: its own nearest neighbors."""
        start, search = self.request.start, self._search
        if start is None or start.image is None or not start.invert or search is None:
            return None

        # All that a user chose for the picture to be drawn would be wrong for the one that is.
        plain = self.request.retrieval.model_copy(
            update={
                "tokens": "neighbors",
                "negative": None,
                "include": (),
                "pool": None,
                "weights": {},
            }
        )

        request = Request(
            images=(start.image,), seeds="0", retrieval=plain, settings=self.request.settings
        )
        looked_up = LookUp(request, self.info, search.databases, open_image=self._open_image)
        return looked_up.rows(0, 1)[0].tokens

    def identity(self, model: Model) -> RequestIdentity:
        """Return what decides the pictures."""
        request, search = self.request, self._search
        asks_p_d = request.unconditional and search is not None and request.centers is None

        # By contents: names of files, models and databases may change between two runs.
        return RequestIdentity(
            texts=request.texts,
            images=tuple(sha256_file(Path(path)) for path in request.images),
            classes=request.classes,
            patches=request.patches,
            unconditional=request.unconditional,
            top_m=request.top_m if asks_p_d else None,
            centers=request.centers if request.unconditional else None,
            turn=None if self._queries is None else self._queries.turn_record,
            retrieval=request.retrieval.model_copy(update={"databases": ()}),
            start=request.start and request.start.record(),
            seeds=format_seeds(self.seeds),
            settings=model.acting(request.settings),
            model=model.digest,
            database=None if search is None else search.digest,
        )

    def resolved(self) -> Request:
        """Return the request with its databases, their versions and its seeds written out: sent
        again, it asks for the same."""
        search = self._search
        databases: tuple[WeightedDatabase, ...] = ()
        if search is not None:
            weights = {one.name: one.weight for one in self.request.retrieval.databases}
            databases = tuple(
                WeightedDatabase(
                    name=name, weight=weights.get(name, 1.0), version=database.version.number
                )
                for name, database in search.databases.items()
            )
        retrieval = self.request.retrieval.model_copy(update={"databases": databases})
        return self.request.model_copy(
            update={"retrieval": retrieval, "seeds": format_seeds(self.seeds)}
        )


def _check_idle(request: Request) -> None:
    """Raise UsageError where a model that reads no neighbors is told about them."""
    retrieval = request.retrieval
    if request.turn is not None:
        raise UsageError(
            "the model reads no neighbors, so a query's vector that is turned tells it nothing",
            where="turn",
            fix="leave it out, or ask a model of another recipe",
        )
    told = Retrieval(databases=retrieval.databases, negative=retrieval.negative)
    if idle := [name for name, value in retrieval if value != getattr(told, name)]:
        raise UsageError(
            f"the model reads no neighbors, so {idle[0]} tells it nothing",
            where="retrieval",
            fix="leave it out, or ask a model of another recipe",
        )
