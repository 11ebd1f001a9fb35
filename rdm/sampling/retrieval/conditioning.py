"""What conditions a picture: all that drawing needs to know, and no database.

It is looked up in one process and drawn from in any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rdm.sampling.request.query_turn import TurnRecord
from rdm.sampling.retrieval.queries import Query

TokenKind = Literal["query", "patch"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Embeddings that a network reads, before its scale.

    Attributes:
        values: float32 [L, D].
        kinds: [L], whether each is the query's own or a patch's.
        weights: float32 [L], factors on the attention that each gets.
        patches: of the tokens that are one, in order: the name of its database and its id.
    """

    values: NDArray[np.float32]
    kinds: tuple[TokenKind, ...]
    weights: NDArray[np.float32]
    patches: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class NegativeConditioning:
    """What a picture is led away from.

    Attributes:
        tokens: None of a model that reads no neighbors.
        caption: of a model that reads texts by themselves.
        scale: n of (1 - s + n) e_u + s e_c - n e_n; None: s - 1.
        texts: that were looked up, in the order of the tokens that are a query's own.
    """

    tokens: Tokens | None
    caption: str | None
    scale: float | None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What conditions one picture.

    Attributes:
        query: what is asked for, with the neighbors that condition and no others.
        seed: of the picture.
        tokens: of its neighbors, or its own; None of a model that reads none.
        negative: what it is led away from.
        image_sha256: of a query picture's pixels.
        turn: of the query to another one.
        inversion: tokens that the picture to start from is inverted under; None: nothing is.
    """

    query: Query
    seed: int
    tokens: Tokens | None
    negative: NegativeConditioning | None = None
    image_sha256: str = ""
    turn: TurnRecord | None = None
    inversion: Tokens | None = None
