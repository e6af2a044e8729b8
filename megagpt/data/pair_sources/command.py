"""The work of `megagpt data pairs`: read, select, write and report."""

import gzip
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megagpt.data.corpus.code.languages import EXTENSIONS
from megagpt.data.files import atomic_file, write_atomic
from megagpt.data.pair_sources import beir, make, report
from megagpt.data.pair_sources.code import LANGUAGES, Functions
from megagpt.data.pair_sources.found import FoundPair, Tally
from megagpt.data.pair_sources.generated import Rejections, accepted, from_code, from_text, standard_records
from megagpt.data.pair_sources.hard_negatives import Mining, with_hard_negatives
from megagpt.data.pair_sources.labelled import Wanted, from_labelled
from megagpt.data.pair_sources.neighbours import Neighbours
from megagpt.data.pair_sources.records import PATTERNS, Record, inputs_bytes, read_records
from megagpt.data.readers import FOLDER_PATTERNS
from megagpt.errors import ConfigError, DataError
from megagpt.log import progress

log = logging.getLogger(__name__)

LARGE_SHARE = 0.2
"""A warning is logged if more than this share of the pairs has one split key, and so cannot be split."""


@dataclass(frozen=True)
class Job:
    """The options of the command, under their names."""

    inputs: tuple[str, ...]
    kind: str
    seed: int
    max_pairs: int | None
    split: make.Split | None
    split_shares: str
    near_duplicates: float
    min_length: int
    max_length: int
    unit: str
    distance: int
    per_document: int
    languages: tuple[str, ...] | None
    docstring: str
    min_words: int
    min_lines: int
    max_lines: int
    tests: bool
    min_score: float | None
    qrels: tuple[str, ...] | None
    max_negatives: int | None
    bm25_negatives: int
    bm25_ranks: str
    key: str
    patterns: tuple[str, ...]
    max_rejected: int
    max_record_mb: float

    @property
    def selection(self) -> make.Selection:
        """Options for keeping pairs. Raises ConfigError."""
        try:
            shares = tuple(float(share) for share in self.split_shares.split(","))
        except ValueError:
            shares = ()
        return make.Selection(self.split, shares, self.max_pairs, self.near_duplicates, self.seed)

    @property
    def neighbours(self) -> Neighbours:
        """Options for passages. Raises ConfigError."""
        return Neighbours(self.min_length, self.max_length, self.unit, self.distance, self.per_document)

    @property
    def functions(self) -> Functions:
        """Options for functions. Raises ConfigError."""
        languages = tuple(name.lower() for name in self.languages or LANGUAGES)
        return Functions(languages, self.docstring, self.min_words, self.min_lines, self.max_lines, self.tests)

    @property
    def wanted(self) -> Wanted:
        """Options for labelled sets. Raises ConfigError."""
        if self.max_negatives is not None and self.max_negatives < 0:
            raise ConfigError(f"--max-negatives is {self.max_negatives}; it must not be negative")
        if self.kind == "scored" and self.min_score is not None:
            raise ConfigError("--min-score is for --kind labelled: --kind scored keeps all scores")
        return Wanted(self.kind == "scored", self.min_score, self.max_negatives, self.docstring)


def run(job: Job, output: Path | None, preview: int | None) -> Iterator[str]:
    """Make the pairs, write them to `output` if given, and show `preview` of them if given. Yields lines to print.

    Raises ConfigError for invalid options, DataError for input that is malformed or gives no pair.
    """
    started, tally = time.perf_counter(), Tally()
    pairs = _pairs(job, tally)
    if not pairs:
        dropped = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.most_common(5))
        raise DataError(f"no pair is left; dropped: {dropped or 'nothing: the inputs hold no record'}")
    account = report.report(pairs, tally, asdict(job), time.perf_counter() - started)
    if preview:
        step = max(1, len(pairs) // preview)
        yield from (report.preview(pair, number) for number, pair in list(enumerate(pairs, 1))[::step][:preview])
    if output:
        _write(pairs, output)
        write_atomic(report_path(output), report.as_json(account))
    largest = account["kept"]["pairs of the largest split key"]
    if largest > max(1, LARGE_SHARE * len(pairs)):
        log.warning("%d of %d pairs have one split_key: splits will not have the shares asked for", largest, len(pairs))
    yield report.in_words(account)
    if output:
        rate = tally.read["pairs"] / max(1e-9, account["seconds"])
        yield f"{output}: {len(pairs)} pairs in {account['seconds']:.1f} s ({rate:,.0f} a second)"


def report_path(output: Path) -> Path:
    """Path of the report of a pair file."""
    return output.with_name(f"{output.name}.report.json")


def _write(pairs: Sequence[FoundPair], output: Path) -> None:
    with atomic_file(output) as file:
        lines = (json.dumps(pair.record(), ensure_ascii=False).encode() + b"\n" for pair in pairs)
        if output.name.endswith(".gz"):
            # Without name and time, the same pairs give the same bytes.
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                packed.writelines(lines)
        else:
            file.writelines(lines)


def _pairs(job: Job, tally: Tally) -> list[FoundPair]:
    if job.kind in ("labelled", "scored"):
        return _labelled(job, tally)
    if not job.inputs and job.kind != "code":
        raise ConfigError(f"--kind {job.kind} needs inputs: files, folders or globs")
    if job.bm25_negatives:
        raise ConfigError("--bm25-negatives is for --kind labelled")
    selection, functions, neighbours = job.selection, job.functions, job.neighbours
    patterns = job.patterns or _patterns(functions if job.kind == "code" else None)
    total = inputs_bytes(job.inputs, patterns) if job.inputs else None
    reject = Rejections(job.max_rejected, tally)
    with progress(total, "B" if job.inputs else "files", "reading") as bar:
        records = (
            read_records(job.inputs, patterns=patterns, max_record_mb=job.max_record_mb, progress=bar.update)
            if job.inputs
            else _counted(standard_records(), bar)
        )
        records = accepted(records, reject, tally, sources=job.kind == "code")
        if job.kind == "code":
            found = from_code(records, job.key, job.inputs, functions, reject, tally)
        else:
            found = from_text(records, job.key, neighbours, job.seed, reject, tally)
        found = make.distinct(found, tally)
        found = make.unlike(found, selection.near_duplicates, job.kind == "neighbours", tally)
        return make.sample(make.in_split(found, selection, tally), selection)


def _labelled(job: Job, tally: Tally) -> list[FoundPair]:
    if not job.inputs:
        raise ConfigError(f"--kind {job.kind} needs inputs: files, folders, globs or BEIR folders")
    selection, mining = job.selection, Mining.parse(job.bm25_negatives, job.bm25_ranks)
    scored = job.kind == "scored"
    if scored and mining.count:
        raise ConfigError("--bm25-negatives is for --kind labelled: scored pairs have no negatives")
    folders = [item for item in job.inputs if beir.is_folder(item)]
    files = [item for item in job.inputs if item not in folders]
    if scored and folders:
        raise ConfigError(f"{folders[0]} is a BEIR folder: --kind labelled makes pairs of it")
    reject, wanted = Rejections(job.max_rejected, tally), job.wanted
    patterns = job.patterns or PATTERNS
    total = inputs_bytes([*files, *(path for folder in folders for path in beir.files_of(folder))], patterns)
    with progress(total, "B", "reading") as bar:
        records = read_records(files, patterns=patterns, max_record_mb=job.max_record_mb, progress=bar.update)
        found = list(from_labelled(accepted(records, reject, tally), wanted, reject, tally))
        collections = [beir.Collection.load(folder, reject, bar.update) for folder in folders]
    for collection in collections:
        found += collection.pairs(collection.splits(job.qrels), job.max_negatives, tally)
    numbers = make.Numbers(selection.near_duplicates)
    pairs = make.together(list(make.distinct(found, tally)), numbers)
    kept = make.sample(make.in_split(pairs, selection, tally), selection)
    if mining.count:
        known = [(pair.query, pair.positive) for pair in pairs]
        known += [texts for collection in collections for texts in collection.relevant()]
        relevant: dict[int, set[int]] = defaultdict(set)
        for query, positive in known:
            relevant[numbers.of(query)].add(numbers.of(positive))
        pool = [text for collection in collections for text in collection.documents.values()]
        pool += [pair.positive for pair in kept if not pool]
        kept = with_hard_negatives(kept, relevant, list(dict.fromkeys(pool)), mining, numbers, job.seed, tally)
    return kept if scored else [numbers.numbered(pair, tally) for pair in kept]


def _patterns(functions: Functions | None) -> tuple[str, ...]:
    """Patterns of the files to read in folders; with `functions`, also files of source code."""
    if functions is None:
        return FOLDER_PATTERNS
    endings = " ".join(EXTENSIONS[language] for language in functions.languages).split()
    headers = ["*.h"] if {"c", "c++"} & set(functions.languages) else []
    return (*(name for name in FOLDER_PATTERNS if ".txt" not in name), *(f"*.{end}" for end in endings), *headers)


def _counted(records: Iterator[Record], bar: object) -> Iterator[Record]:
    for record in records:
        yield record
        bar.update(1)
