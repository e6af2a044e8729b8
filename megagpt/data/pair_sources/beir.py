"""Read BEIR folders (arXiv 2104.08663): corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.generated import Rejections
from megagpt.data.pair_sources.records import Progress, Record, read_records
from megagpt.data.readers import Rejection
from megagpt.data.unread import log_unread
from megagpt.errors import DataError

_QUERIES = ("queries.jsonl", "claims.jsonl")
"""SciFact calls its queries claims."""
_IDS = ("_id", "id", "doc_id")
_TEXTS = ("text", "claim", "sentences", "abstract")
_PACKED = ("", ".gz", ".zst")


def is_folder(path: str | Path) -> bool:
    """Whether `path` is a BEIR folder."""
    return Path(path).is_dir() and _find(Path(path), ("corpus.jsonl",)) is not None


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    paths = [folder / f"{name}{packed}" for name in names for packed in _PACKED]
    return next((path for path in paths if path.is_file()), None)


def files_of(folder: str | Path) -> list[Path]:
    """Paths of the corpus, the queries and all judgements. Raises DataError when one is missing."""
    folder = Path(folder)
    corpus, queries = _find(folder, ("corpus.jsonl",)), _find(folder, _QUERIES)
    judgements = sorted(folder.glob("qrels/*.tsv*")) or sorted(folder.glob("qrels.tsv*"))
    if corpus is None or queries is None or not judgements:
        missing = "corpus.jsonl" if corpus is None else "queries.jsonl" if queries is None else "qrels/*.tsv"
        raise DataError(f"{folder}: no {missing}, which a BEIR folder has")
    return [corpus, queries, *judgements]


@dataclass
class Collection:
    """A BEIR folder in memory."""

    name: str
    documents: dict[str, str] = field(default_factory=dict)
    """Title and text of each document, by id."""
    queries: dict[str, str] = field(default_factory=dict)
    judgements: dict[str, list[tuple[str, str, int]]] = field(default_factory=lambda: defaultdict(list))
    """(query id, document id, score) of the judgements of each split."""

    @classmethod
    def load(cls, folder: str | Path, reject: Rejections, progress: Progress = lambda count: None) -> "Collection":
        """Read a folder. Raises DataError for a missing file, and for more malformed records than `reject` allows."""
        corpus, queries, *judgements = files_of(folder)
        found = cls(str(folder))
        for texts, path in ((found.documents, corpus), (found.queries, queries)):
            unread: Counter[str] = Counter()
            for record in _read(path, reject, progress):
                try:
                    key, text = _entry(record.value)
                    if key in texts:
                        raise ValueError(f"the id {key!r} is there twice")
                    texts[key] = text
                    unread.update(name for name in record.value if name not in (*_IDS, *_TEXTS, "title"))
                except ValueError as error:
                    reject(Rejection(record.path, record.number, str(error)))
            log_unread(path, unread)
        reject.tally.read["documents"] += len(found.documents)
        reject.tally.read["queries"] += len(found.queries)
        for path in judgements:
            found._read_judgements(path, reject, progress)
        return found

    def _read_judgements(self, path: Path, reject: Rejections, progress: Progress) -> None:
        names: list[str] | None = None
        for record in _read(path, reject, progress):
            cells = [cell.strip() for cell in record.value]
            if names is None:
                names = cells if "query-id" in cells else ["query-id", "corpus-id", "score"]
                if "query-id" in cells:
                    continue
            if len(cells) == 4 and len(names) == 3:  # TREC's: query, 0, document, score
                cells = [cells[0], *cells[2:]]
            row = dict(zip(names, cells, strict=False))
            try:
                split = row.get("split") or path.name.partition(".")[0]
                self.judgements[split].append((row["query-id"], row["corpus-id"], int(row["score"])))
            except (KeyError, ValueError):
                reject(Rejection(record.path, record.number, "not a judgement: query-id, corpus-id, score"))

    def splits(self, wanted: Sequence[str] | None) -> list[str]:
        """The splits to take: the wanted ones, or train, or the only one. Raises DataError if there is none such."""
        there = list(self.judgements)
        if wanted is None:
            wanted = ["train"] if "train" in there else there
            if len(wanted) != 1:
                raise DataError(f"{self.name}: no split called train: choose with --qrels among {', '.join(there)}")
        if missing := [name for name in wanted if name not in there]:
            raise DataError(f"{self.name}: no judgements of --qrels {', '.join(missing)}; there are {', '.join(there)}")
        return list(wanted)

    def relevant(self) -> Iterator[tuple[str, str]]:
        """(text of a query, text of a relevant document) in all splits."""
        for rows in self.judgements.values():
            for query, document, score in rows:
                if score > 0 and query in self.queries and document in self.documents:
                    yield self.queries[query], self.documents[document]

    def pairs(self, splits: Sequence[str], max_negatives: int | None, tally: Tally) -> Iterator[FoundPair]:
        """Pairs of each query with each relevant document; its documents that were judged irrelevant are negatives."""
        for split in splits:
            by_query: dict[str, list[tuple[str, int]]] = defaultdict(list)
            for query, document, score in self.judgements[split]:
                place = f"{self.name}, {split}: query {query}, document {document}"
                if query not in self.queries or document not in self.documents:
                    tally.drop(f"judgement of a missing {'document' if query in self.queries else 'query'}", place)
                else:
                    by_query[query].append((document, score))
            for query, judged in by_query.items():
                wrong = tuple(self.documents[document] for document, score in judged if score <= 0)[:max_negatives]
                good = [document for document, score in judged if score > 0]
                if not good:
                    tally.drop("query without relevant document", f"{self.name}, {split}: query {query}")
                for document in good:
                    text = self.documents[document]
                    yield FoundPair(self.queries[query], text, wrong, f"{self.name}/{document}")


def _read(path: Path, reject: Rejections, progress: Progress) -> Iterator[Record]:
    for record in read_records([path], progress=progress):
        if isinstance(record, Rejection):
            reject(record)
        else:
            yield record


def _entry(value: object) -> tuple[str, str]:
    """(id, title and text) of a document or query. SciFact has a list of sentences in `sentences` or `abstract`.

    Raises ValueError for a malformed record.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__}, not an object")
    key = next((value[name] for name in _IDS if name in value), None)
    if key is None:
        raise ValueError("no _id")
    text = next((value[name] for name in _TEXTS if name in value), "")
    text = " ".join(map(str, text)) if isinstance(text, list) else text
    parts = [part.strip() for part in (value.get("title"), text) if isinstance(part, str) and part.strip()]
    if not parts:
        raise ValueError("no text")
    return str(key), " ".join(parts)
