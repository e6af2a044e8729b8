"""The embedding tasks of `megagpt evaluate`."""

from typing import Any

from megagpt.evaluate.code_search import evaluate_code_search
from megagpt.evaluate.linear_probe import evaluate_probe
from megagpt.evaluate.retrieval import evaluate_retrieval
from megagpt.evaluate.settings import (
    CodeSearchEvaluation,
    EmbeddingEvaluation,
    ProbeEvaluation,
    RetrievalEvaluation,
    SimilarityEvaluation,
)
from megagpt.evaluate.similarity import evaluate_similarity
from megagpt.evaluate.text_embedder import TextEmbedder

_EVALUATIONS = {
    SimilarityEvaluation: evaluate_similarity,
    RetrievalEvaluation: evaluate_retrieval,
    CodeSearchEvaluation: evaluate_code_search,
    ProbeEvaluation: evaluate_probe,
}


def evaluate_embeddings(settings: EmbeddingEvaluation, embedder: TextEmbedder) -> dict[str, Any]:
    """Run the task of `settings`; returns the content of result.json, with `metrics` of the model and baselines."""
    return _EVALUATIONS[type(settings)](settings, embedder)
