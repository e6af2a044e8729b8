"""Semantic textual similarity: correlates the cosines of sentence pairs with human scores."""

from typing import Any

import numpy as np

from megagpt.data.scored_pairs import read_sentence_pairs
from megagpt.errors import DataError
from megagpt.evaluate.output_folder import claim, embedding_request, write_result
from megagpt.evaluate.ranking import pearson, spearman
from megagpt.evaluate.settings import SimilarityEvaluation
from megagpt.evaluate.text_embedder import TextEmbedder, embed_saved


def evaluate_similarity(settings: SimilarityEvaluation, embedder: TextEmbedder) -> dict[str, Any]:
    """Embed both sentences of all pairs and correlate; returns the content of result.json.

    Metrics are Spearman's and Pearson's correlation of cosines and scores; null if all cosines are equal. Raises
    DataError for a broken file, ConfigError when the output folder holds a different evaluation.
    """
    pairs = read_sentence_pairs(settings.data)
    scores = np.array([pair.score for pair in pairs])
    if np.ptp(scores) == 0:
        raise DataError(f"{settings.data}: all {len(pairs)} scores are equal; a correlation needs different ones")
    request = embedding_request(settings, [settings.data], {"pairs": len(pairs)}, side=settings.side)
    claim(settings.output, request)
    first_side, second_side = ("query", "document") if settings.side == "both" else (settings.side, settings.side)
    folder = settings.output / "embeddings"
    first = [pair.sentence1 for pair in pairs]
    second = [pair.sentence2 for pair in pairs]
    a = embed_saved(embedder, first, first_side, settings.dimensions, folder, "first_sentences")
    b = embed_saved(embedder, second, second_side, settings.dimensions, folder, "second_sentences")
    cosines = np.einsum("nh,nh->n", a, b, dtype=np.float64)  # rows have norm 1
    found = {"spearman": spearman(cosines, scores), "pearson": pearson(cosines, scores)}
    metrics = {name: None if np.isnan(value) else value for name, value in found.items()}
    return write_result(settings.output, request, {"metrics": {"model": metrics}})
