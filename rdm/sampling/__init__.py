"""Sampling: queries, the proposal distribution, context assembly, the pipeline."""

from rdm.sampling.model import (
    RetrievalAutoregressionModel,
    RetrievalDiffusionModel,
    RetrievalModel,
    SampleSettings,
    open_model,
)
from rdm.sampling.pipeline import Sample, check_asked, proposed_queries, sample
from rdm.sampling.proposal import Proposal
from rdm.sampling.queries import Query, image_queries, text_queries, unconditional_queries

__all__ = [
    "Proposal",
    "Query",
    "RetrievalAutoregressionModel",
    "RetrievalDiffusionModel",
    "RetrievalModel",
    "Sample",
    "SampleSettings",
    "check_asked",
    "image_queries",
    "open_model",
    "proposed_queries",
    "sample",
    "text_queries",
    "unconditional_queries",
]
