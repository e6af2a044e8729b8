"""Evaluates search for a pair's positive (such as code) among other positives, compared with BM25 and chance."""

from typing import Any

import numpy as np

from megagpt.data import bm25
from megagpt.data.pairs import read_pairs
from megagpt.errors import DataError
from megagpt.evaluate.output_folder import claim, embedding_request, write_result
from megagpt.evaluate.ranking import search_among_candidates, search_by_scores
from megagpt.evaluate.settings import CodeSearchEvaluation
from megagpt.evaluate.text_embedder import TextEmbedder, embed_saved

METRICS = ("mrr", "recall_at_1", "recall_at_10")


def evaluate_code_search(settings: CodeSearchEvaluation, embedder: TextEmbedder) -> dict[str, Any]:
    """Embed the queries and positives of a pair file and search; returns the content of result.json.

    Metrics are of the model, of BM25 (with word statistics of all positives in the file) and of chance on the same
    candidates; see `search_by_scores`. Positives with the same text id do not compete. Raises DataError for a broken
    file, ConfigError when the output folder holds a different evaluation.
    """
    pairs = read_pairs([settings.data])
    if len(pairs) < 2:
        raise DataError(f"{settings.data} holds {len(pairs)} pairs; a search needs at least 2")
    request = embedding_request(
        settings, [settings.data], {"pairs": len(pairs)}, candidates=settings.candidates, seed=settings.seed
    )
    claim(settings.output, request)
    folder = settings.output / "embeddings"
    texts, positives = [pair.query for pair in pairs], [pair.positive for pair in pairs]
    groups = np.array([pair.text_ids[1] for pair in pairs])
    queries = embed_saved(embedder, texts, "query", settings.dimensions, folder, "queries")
    documents = embed_saved(embedder, positives, "document", settings.dimensions, folder, "positives")
    of_model = search_among_candidates(queries, documents, settings.candidates, settings.seed, groups)
    index = bm25.BM25(positives)

    def by_words(chosen: np.ndarray) -> np.ndarray:
        return index.scores([texts[number] for number in chosen], chosen)

    of_bm25 = search_by_scores(by_words, len(pairs), settings.candidates, settings.seed, groups)
    metrics = {
        "model": {name: of_model[name] for name in METRICS},
        "bm25": {name: of_bm25[name] for name in METRICS},
        "chance": {name: of_model[f"chance_{name}"] for name in METRICS},
    }
    about = {"bm25": {"k1": bm25.K1, "b": bm25.B}, "candidates": of_model["candidates"]}
    return write_result(settings.output, request, about | {"metrics": metrics})
