"""Sampling: queries, the proposal distribution, context assembly, the pipeline."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdm.generators.model_folder import Model, open_model
    from rdm.generators.sample_settings import DrawStep, SampleSettings
    from rdm.sampling.draw_request import draw_request
    from rdm.sampling.drawing.pipeline import Sample, proposed_queries, sample
    from rdm.sampling.recipe.record import SampleRecord
    from rdm.sampling.request.asked import check_asked
    from rdm.sampling.request.sample_request import Request, read_request
    from rdm.sampling.retrieval.conditioning import Conditioning
    from rdm.sampling.retrieval.look_up import LookUp, look_up
    from rdm.sampling.retrieval.proposal import Proposal
    from rdm.sampling.retrieval.queries import (
        Query,
        image_queries,
        text_queries,
        unconditional_queries,
    )

# A name is imported when it is asked for: a search needs the queries, and not the networks that
# draw.
_HOMES = {
    "DrawStep": "rdm.generators.sample_settings",
    "Model": "rdm.generators.model_folder",
    "SampleSettings": "rdm.generators.sample_settings",
    "open_model": "rdm.generators.model_folder",
    "Sample": "rdm.sampling.drawing.pipeline",
    "Conditioning": "rdm.sampling.retrieval.conditioning",
    "LookUp": "rdm.sampling.retrieval.look_up",
    "check_asked": "rdm.sampling.request.asked",
    "look_up": "rdm.sampling.retrieval.look_up",
    "read_request": "rdm.sampling.request.sample_request",
    "proposed_queries": "rdm.sampling.drawing.pipeline",
    "sample": "rdm.sampling.drawing.pipeline",
    "Proposal": "rdm.sampling.retrieval.proposal",
    "Query": "rdm.sampling.retrieval.queries",
    "image_queries": "rdm.sampling.retrieval.queries",
    "text_queries": "rdm.sampling.retrieval.queries",
    "unconditional_queries": "rdm.sampling.retrieval.queries",
    "SampleRecord": "rdm.sampling.recipe.record",
    "Request": "rdm.sampling.request.sample_request",
    "draw_request": "rdm.sampling.draw_request",
}

__all__ = [
    "Conditioning",
    "DrawStep",
    "LookUp",
    "Model",
    "Proposal",
    "Query",
    "Sample",
    "SampleRecord",
    "Request",
    "SampleSettings",
    "check_asked",
    "draw_request",
    "image_queries",
    "look_up",
    "open_model",
    "proposed_queries",
    "read_request",
    "sample",
    "text_queries",
    "unconditional_queries",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
