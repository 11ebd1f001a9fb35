"""Turns the vectors of queries: between two queries, and along the difference of two texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rdm.diffusion.editing import slerp, text_difference
from rdm.encoders import Encoder, normalize
from rdm.errors import UsageError
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.request.query_turn import QueryTurn, TurnRecord
from rdm.sampling.retrieval.query_vectors import text_vectors


@dataclass(frozen=True, eq=False)
class OpenedTurn:
    """A turn whose text or picture is embedded.

    Attributes:
        towards: its embedding [D], at the encoder's own length.
        away: that of the text to turn away from; None: the turn is to `towards` itself.
        record: what identifies the turn.
    """

    towards: NDArray[np.float32]
    away: NDArray[np.float32] | None
    record: TurnRecord

    def of(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings [N, D] turned; a fraction of 0 gives them back to the last bit.

        Raises:
            UsageError: the two texts of a difference have the same vector.
        """
        fraction, vectors = self.record.fraction, torch.from_numpy(raw)

        # Towards a query: along the great circle between both.
        if self.away is None:
            towards = torch.from_numpy(self.towards).expand_as(vectors)
            return slerp(vectors, towards, fraction).numpy()

        # By a difference of texts: directions turn, and lengths stay the query's.
        lengths = vectors.norm(dim=1, keepdim=True)
        towards, away = (torch.from_numpy(normalize(one)) for one in (self.towards, self.away))
        try:
            turned = text_difference(vectors / lengths, towards, away, fraction)
        except ValueError as error:
            raise UsageError(
                f"{self.record.text!r} and {self.record.away!r} have the same vector, so there is "
                "no direction between them",
                where="--away-text",
                fix="give two texts that differ",
            ) from error
        return raw if fraction == 0 else (turned * lengths).numpy()


def open_turn(
    turn: QueryTurn, encoder: Encoder, open_image: Callable[[str], Image.Image]
) -> OpenedTurn:
    """Embed the text or the picture of a turn.

    Args:
        turn: as asked for.
        encoder: of the database.
        open_image: returns a picture by its name in the request.

    Raises:
        SourceError: the picture cannot be read.
    """
    away = None if turn.away is None else text_vectors(encoder, [turn.away])[0]
    fields = {"text": turn.text, "away": turn.away, "fraction": turn.fraction}
    if turn.image is None:
        assert turn.text is not None
        towards = text_vectors(encoder, [turn.text])[0]
    else:
        picture = open_image(turn.image)
        towards = encoder.encode_images(encoder.preprocess(picture)[None])[0]
        fields |= {
            "image": PurePath(turn.image.replace("\\", "/")).name,
            "image_sha256": pixels_digest(np.asarray(picture)),
        }
    return OpenedTurn(towards, away, TurnRecord.model_validate(fields))
