"""Sampling: queries, the proposal distribution, context assembly, the pipeline."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdm.generators.model_folder import Model, open_model
    from rdm.generators.sample_settings import DrawStep, SampleSettings
    from rdm.sampling.asked import check_asked
    from rdm.sampling.conditioning import Conditioning
    from rdm.sampling.draw_request import draw_request
    from rdm.sampling.pipeline import Sample, proposed_queries, sample
    from rdm.sampling.proposal import Proposal
    from rdm.sampling.queries import Query, image_queries, text_queries, unconditional_queries
    from rdm.sampling.record import SampleRecord
    from rdm.sampling.request import Request, read_request
    from rdm.sampling.retrieval.look_up import LookUp, look_up

# A name is imported when it is asked for: a search needs the queries, and not the networks that
# draw.
_HOMES = {
    "DrawStep": "rdm.generators.sample_settings",
    "Model": "rdm.generators.model_folder",
    "SampleSettings": "rdm.generators.sample_settings",
    "open_model": "rdm.generators.model_folder",
    "Sample": "rdm.sampling.pipeline",
    "Conditioning": "rdm.sampling.conditioning",
    "LookUp": "rdm.sampling.retrieval.look_up",
    "check_asked": "rdm.sampling.asked",
    "look_up": "rdm.sampling.retrieval.look_up",
    "read_request": "rdm.sampling.request",
    "proposed_queries": "rdm.sampling.pipeline",
    "sample": "rdm.sampling.pipeline",
    "Proposal": "rdm.sampling.proposal",
    "Query": "rdm.sampling.queries",
    "image_queries": "rdm.sampling.queries",
    "text_queries": "rdm.sampling.queries",
    "unconditional_queries": "rdm.sampling.queries",
    "SampleRecord": "rdm.sampling.record",
    "Request": "rdm.sampling.request",
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
