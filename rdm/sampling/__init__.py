"""Sampling: queries, the proposal distribution, context assembly, the pipeline."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdm.sampling.model import (
        DrawStep,
        RetrievalAutoregressionModel,
        RetrievalDiffusionModel,
        RetrievalModel,
        SampleSettings,
        open_model,
    )
    from rdm.sampling.pipeline import Sample, check_asked, proposed_queries, sample
    from rdm.sampling.proposal import Proposal
    from rdm.sampling.queries import Query, image_queries, text_queries, unconditional_queries
    from rdm.sampling.record import SampleRecord
    from rdm.sampling.request import SampleRequest
    from rdm.sampling.run import draw_request

# A name is imported when it is asked for: a search needs the queries, and not the networks that draw.
_HOMES = {
    "DrawStep": "model",
    "SampleRecord": "record",
    "SampleRequest": "request",
    "draw_request": "run",
    "RetrievalAutoregressionModel": "model",
    "RetrievalDiffusionModel": "model",
    "RetrievalModel": "model",
    "SampleSettings": "model",
    "open_model": "model",
    "Sample": "pipeline",
    "check_asked": "pipeline",
    "proposed_queries": "pipeline",
    "sample": "pipeline",
    "Proposal": "proposal",
    "Query": "queries",
    "image_queries": "queries",
    "text_queries": "queries",
    "unconditional_queries": "queries",
}

__all__ = [
    "DrawStep",
    "Proposal",
    "Query",
    "RetrievalAutoregressionModel",
    "RetrievalDiffusionModel",
    "RetrievalModel",
    "Sample",
    "SampleRecord",
    "SampleRequest",
    "SampleSettings",
    "check_asked",
    "draw_request",
    "image_queries",
    "open_model",
    "proposed_queries",
    "sample",
    "text_queries",
    "unconditional_queries",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
