"""Evaluates search in a BEIR folder with trec_eval's metrics, compared with BM25 on the same documents."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data import bm25
from megagpt.data.conversations import records
from megagpt.data.files import read_text
from megagpt.data.unread import log_unread
from megagpt.errors import DataError
from megagpt.evaluate.output_folder import claim, embedding_request, write_result
from megagpt.evaluate.ranking import MRR_DEPTH, ranking_metrics, top
from megagpt.evaluate.settings import RetrievalEvaluation
from megagpt.evaluate.text_embedder import TextEmbedder, embed_saved
from megagpt.log import progress

log = logging.getLogger(__name__)

DEPTH = 1000
"""Length of a ranking for MAP, as in TREC's and BEIR's runs."""

BLOCK = 64
"""Number of queries in a block."""


@dataclass(frozen=True)
class RetrievalSet:
    """Documents, judged queries, and judgements."""

    documents: dict[str, str]
    """{id: text}, in descending order of ids, which is trec_eval's order of equal scores."""
    queries: dict[str, str]
    """{id: text}."""
    judgements: dict[str, dict[str, int]]
    """{query id: {document id: relevance}}."""


def evaluate_retrieval(settings: RetrievalEvaluation, embedder: TextEmbedder) -> dict[str, Any]:
    """Embed, search exactly (inner product with every document) and measure; returns the content of result.json.

    Metrics are means of `ranking_metrics` over all judged queries, for the model and for BM25. A query without a
    relevant document counts as 0, as in pytrec_eval. Raises DataError for a broken folder, ConfigError when the output
    folder holds a different evaluation.
    """
    files = beir_files(settings.data, settings.split)
    data = read_beir(settings.data, settings.split)
    count = {"documents": len(data.documents), "queries": len(data.queries)}
    request = embedding_request(settings, files, count, k=list(settings.k), skip_same_id=settings.skip_same_id)
    claim(settings.output, request)
    folder, texts = settings.output / "embeddings", list(data.queries.values())
    queries = embed_saved(embedder, texts, "query", settings.dimensions, folder, "queries")
    documents = embed_saved(
        embedder, list(data.documents.values()), "document", settings.dimensions, folder, "documents"
    )
    index = bm25.BM25(list(data.documents.values()))

    def words_in_common(start: int) -> np.ndarray:
        scores = index.scores(texts[start : start + BLOCK])
        return np.where(scores > 0, scores, -np.inf)  # BM25 does not find a document without a common word

    of_model = measure(data, lambda start: queries[start : start + BLOCK] @ documents.T, settings, "searching")
    of_bm25 = measure(data, words_in_common, settings, "searching, BM25")
    more = {"bm25": {"k1": bm25.K1, "b": bm25.B}, "metrics": {"model": of_model, "bm25": of_bm25}}
    return write_result(settings.output, request, more)


def measure(
    data: RetrievalSet, scores: Callable[[int], np.ndarray], settings: RetrievalEvaluation, label: str
) -> dict[str, float]:
    """The mean metrics of a ranking by scores.

    scores: maps `start` to the scores [at most BLOCK, documents] of the queries from index `start`, in the order of
    `data`; minus infinity for documents that were not found.
    """
    place = {document: number for number, document in enumerate(data.documents)}
    depth, ids = max(DEPTH, *settings.k, MRR_DEPTH), list(data.queries)
    most = max(map(len, data.judgements.values()))
    found: dict[str, list[np.ndarray]] = {}
    with progress(len(ids), "queries", label) as bar:
        for start in range(0, len(ids), BLOCK):
            chosen, block = ids[start : start + BLOCK], np.array(scores(start))
            if settings.skip_same_id:
                for row, query in enumerate(chosen):
                    if query in place:
                        block[row, place[query]] = -np.inf
            order = top(block, depth)
            ranked = np.zeros(order.shape, np.int64)
            relevant = np.zeros((len(chosen), most), np.int64)
            for row, query in enumerate(chosen):
                judged = data.judgements[query]
                relevance = np.zeros(len(place), np.int64)
                inside = [document for document in judged if document in place]
                relevance[[place[document] for document in inside]] = [judged[document] for document in inside]
                ranked[row] = np.where(np.isneginf(block[row, order[row]]), 0, relevance[order[row]])
                relevant[row, : len(judged)] = list(judged.values())
            for name, values in ranking_metrics(ranked, relevant, settings.k).items():
                found.setdefault(name, []).append(values)
            bar.update(len(chosen))
    return {name: float(np.concatenate(values).mean()) for name, values in found.items()}


def beir_files(folder: Path, split: str) -> list[Path]:
    """The files of a BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, plain or .gz. Raises DataError."""
    files = []
    for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"):
        present = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not present:
            raise DataError(
                f"{folder} has no {name}: a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/{split}.tsv"
            )
        files.append(present[0])
    return files


def read_beir(folder: Path, split: str) -> RetrievalSet:
    """The documents, and the queries with judgements in `split`.

    A document's text is its title, a space, and its text, as is usual for BEIR. Raises DataError that names file and
    line of a record that is malformed, repeated or without text.
    """
    corpus, questions, qrels = beir_files(folder, split)
    documents, queries = _texts(corpus, "title"), _texts(questions)
    judgements: dict[str, dict[str, int]] = {}
    for (query, document, score), place in _judgements(qrels):
        if query not in queries:
            raise DataError(f"{place}: query {query!r} is not in {questions}")
        if document in judgements.setdefault(query, {}):
            raise DataError(f"{place}: query {query!r} and document {document!r} are judged twice")
        judgements[query][document] = score
    if not judgements or not documents:
        raise DataError(f"{folder} holds {len(documents)} documents and {len(judgements)} judged queries")
    missing = sum(document not in documents for judged in judgements.values() for document in judged)
    if missing:
        log.warning("%d judged documents are not in %s: they count as not found", missing, corpus)
    ordered = dict(sorted(documents.items(), reverse=True))
    return RetrievalSet(ordered, {query: queries[query] for query in judgements}, judgements)


def _texts(path: Path, *optional: str) -> dict[str, str]:
    """{id: text}; the text begins with the record's fields `optional`, if it has them."""
    texts: dict[str, str] = {}
    unread: Counter[str] = Counter()
    for record, place in records(path):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or "_id" not in record:
            raise DataError(f'{place}: a record needs "_id" and the text in "text"')
        text = " ".join(str(record.get(name) or "") for name in (*optional, "text")).strip()
        key = str(record["_id"])
        if not text:
            raise DataError(f"{place}: record {key!r} has no text; remove it")
        if key in texts:
            raise DataError(f"{place}: the id {key!r} occurs twice")
        texts[key] = text
        unread.update(name for name in record if name not in ("_id", "text", *optional))
    log_unread(path, unread)
    return texts


def _judgements(path: Path) -> Iterator[tuple[tuple[str, str, int], str]]:
    """((query id, document id, relevance), place for error messages); a first line with column names is skipped."""
    file = io.StringIO(read_text(path, "judgements"), newline="")
    try:
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            place = f"{path}:{number}"
            if number == 1 and row and not _is_integer(row[-1]):
                continue
            if len(row) != 3 or not _is_integer(row[2]):
                raise DataError(f"{place}: a judgement is query-id, corpus-id, score (a whole number), with tabs")
            yield (row[0], row[1], int(row[2])), place
    except csv.Error as error:
        raise DataError(f"cannot read judgements from {path}: {error}") from None


def _is_integer(text: str) -> bool:
    return text.strip().lstrip("-").isdecimal()
