"""The steps of a corpus of text for `bench_corpus`: this project's steps, and datatrove's equivalent blocks."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from raw_crawl import FOREIGN, records

from megagpt.data.corpus.duplicates import near
from megagpt.data.corpus.duplicates.exact import find_repeated, hash_texts, offer
from megagpt.data.corpus.duplicates.minhash import MinHash, bucket_keys
from megagpt.data.corpus.duplicates.tables import places_of, write_table
from megagpt.data.corpus.shards import read_shard, write_shard
from megagpt.data.corpus.tally import Tally
from megagpt.data.corpus.text.analysis import Analysis, split_sentences
from megagpt.data.corpus.text.decontamination.index import read_index
from megagpt.data.corpus.text.inputs.read import read_unit
from megagpt.data.corpus.text.inputs.units import list_units
from megagpt.data.corpus.text.page import Page
from megagpt.data.corpus.text.page_filter import Document, PageFilter
from megagpt.data.corpus.text.quality.hashing import BUCKETS, HashingModel
from megagpt.data.corpus.text.recipe import Recipe, load_recipe
from megagpt.data.corpus.text.rules import c4, fineweb, gopher, languages, lines, pii
from megagpt.data.corpus.text.steps import runs_of

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.utils.word_tokenizers import WordTokenizer

EVALUATION = ("lambada/lambada_test.jsonl.gz", "hellaswag/hellaswag_val_4k.jsonl.gz")
"""Files of --data that the corpus is compared with."""
NGRAM = 13
WITHOUT_URLS = "urls=null"
"""The rules about addresses are left out: they are separate, and cost very little compared to the text."""


@dataclass(frozen=True)
class Step:
    """The name of a step, and functions that run it once over all documents, on each side."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None = None
    """None if datatrove has no equivalent."""


def make_language_model(data: Path, path: Path, bucket: int = 2_000_000) -> None:
    """Train fastText with lid.176.bin's settings: 16 dimensions, runs of 2 to 4 characters in `bucket` buckets."""
    import fasttext

    text = path.with_suffix(".txt")
    with text.open("w", encoding="utf-8") as file:
        for record in records(data, "flores200/flores200_dev.jsonl.gz"):
            for name, sentence in record.items():
                if name in _CODES:
                    file.write(f"__label__{_CODES[name]} {' '.join(str(sentence).split())}\n")
        for name, language in FOREIGN.items():  # other kinds of text than FLORES's news: letters and novels
            for record in records(data, name):
                for line in record["text"].splitlines()[:400]:
                    if line.strip():
                        file.write(f"__label__{language or record['lang']} {' '.join(line.split())}\n")
        for record in list(records(data, "wiki_c4_demo/c4_demo.jsonl.gz"))[::2]:
            for line in record["text"].splitlines()[:20]:
                file.write(f"__label__en {' '.join(line.split())}\n")
    model = fasttext.train_supervised(
        str(text), dim=16, minn=2, maxn=4, bucket=bucket, loss="hs", lr=0.5, epoch=5, thread=1, verbose=0
    )
    model.save_model(str(path))


_CODES = {"eng_Latn": "en", "deu_Latn": "de", "fra_Latn": "fr", "jpn_Jpan": "ja", "zho_Hans": "zh", "spa_Latn": "es"}


def steps(texts: Sequence[str], data: Path, language_model: Path, folder: Path) -> Iterator[Step]:
    """The steps for single documents. folder: datatrove's blocks need one, but write nothing to it"""
    from datatrove.pipeline import filters, formatters

    gopher_recipe, web = load_recipe("gopher"), load_recipe("fineweb")
    full = load_recipe("c4").c4
    refined = load_recipe("dclm").lines
    yield Step("words", lambda: [Analysis(text).lower_hashes for text in texts], _words(texts))
    cld2, model = languages.load_identifier("cld2"), languages.load_identifier(str(language_model))
    yield Step("language, CLD2", lambda: [cld2(text) for text in texts])
    their_language = language_filter(language_model)
    yield Step("language, fastText", lambda: [model(text) for text in texts], _filter(their_language, texts))
    yield Step("line rules", lambda: [lines.lines(Analysis(text), refined) for text in texts])
    yield Step("c4", lambda: [c4.c4(Analysis(text), full) for text in texts], _filter(c4_filter(full), texts))
    limits, repetition, own = gopher_recipe.gopher_quality, gopher_recipe.gopher_repetition, web.fineweb
    yield Step(
        "gopher quality",
        lambda: [gopher.quality(Analysis(text), limits) for text in texts],
        _filter(filters.GopherQualityFilter(), texts),
    )
    yield Step(
        "gopher repetition",
        lambda: [gopher.repetition(Analysis(text), repetition) for text in texts],
        _filter(filters.GopherRepetitionFilter(), texts),
    )
    yield Step(
        "fineweb",
        lambda: [fineweb.fineweb(Analysis(text), own) for text in texts],
        _filter(filters.FineWebQualityFilter(), texts),
    )
    classifier = HashingModel(np.random.default_rng(0).normal(size=BUCKETS), 0.0)
    yield Step("quality, hashed words", lambda: [classifier.score(Analysis(text)) for text in texts])
    formatter = formatters.PIIFormatter()
    yield Step(
        "pii", lambda: [pii.pii(text, web.pii) for text in texts], lambda: [formatter.format(text) for text in texts]
    )
    yield from _comparing_steps(texts, data, folder)


def _comparing_steps(texts: Sequence[str], data: Path, folder: Path) -> Iterator[Step]:
    """The steps that compute hashes of each document for comparisons, and the count of evaluation text."""
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig, ExactDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    def text_of(document: Theirs) -> str:
        return document.text

    sha1 = HashConfig(hash_fc="sha1")  # its xxhash fails, since xxhash accepts no str from version 4 on
    exact = ExactDedupSignature(str(folder / "exact"), ExactDedupConfig(text_of, hash_config=sha1))
    signing = MinhashDedupSignature(str(folder / "near"), MinhashConfig(hash_config=sha1))
    setting = MinHash()
    yield Step("exact hashes", lambda: hash_texts(texts), lambda: [exact.hash_fc(text) for text in texts])
    yield Step(
        "minhash signatures",
        lambda: [bucket_keys(runs_of(text, setting.words), setting) for text in texts],
        lambda: [signing.get_signature(signing.get_shingles(text)) for text in texts],
    )
    index, _ = read_index([data / name for name in EVALUATION], NGRAM)
    counts = index.no_counts()
    yield Step("decontamination count", lambda: [index.count(text, counts) for text in texts], _overlap(texts, data))
    shard = folder / "shard.jsonl.zst"
    yield Step("write shard", lambda: write_shard(shard, ({"text": text} for text in texts)))
    yield Step("read shard", lambda: list(read_shard(shard)))


def _words(texts: Sequence[str]) -> Callable[[], Any]:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    splitter = load_word_tokenizer("en")
    return lambda: [splitter.word_tokenize(text) for text in texts]


def _overlap(texts: Sequence[str], data: Path) -> Callable[[], Any]:
    """datatrove's search for runs of words of evaluations. Its indexer needs lighteval, so the index is made here."""
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=NGRAM, hash_config=HashConfig(hash_fc="sha1"))
    block = NGramsDecontFilter(str(data), config)
    block._index_hashes = {}
    for name in EVALUATION:
        for record in records(data, name):
            text = record.get("text") or " ".join([record["ctx"], *record["endings"]])
            words = simplify_text(text, config.norm_config).split()
            hashes = (block.hash_func(" ".join(run)) for run in ngrams(words, NGRAM))
            block._index_hashes.update(dict.fromkeys(hashes, name))
    return _filter(block, texts)


def _filter(block: "BaseFilter", texts: Sequence[str]) -> Callable[[], Any]:
    from datatrove.data import Document as Theirs

    return lambda: [block.filter(Theirs(text, "")) for text in texts]


def language_filter(model: Path, keep: tuple[str, ...] = ("en",), least: float = 0.65) -> "BaseFilter":
    """datatrove's filter of languages with the model in a file. Its check for one build of fastText is switched off."""
    import fasttext
    from datatrove.pipeline.filters import LanguageFilter

    LanguageFilter._requires_dependencies = []
    block = LanguageFilter(list(keep), least)
    block.model._model = fasttext.load_model(str(model))
    return block


def c4_filter(limits: Any, splitter: "str | WordTokenizer" = "en") -> "BaseFilter":
    """datatrove's filter of C4's rules with our limits."""
    from datatrove.pipeline.filters import C4QualityFilter

    return C4QualityFilter(
        filter_no_terminal_punct=limits.terminal_marks is not None,
        min_num_sentences=limits.min_sentences,
        min_words_per_line=limits.min_words,
        language=splitter,
    )


def our_splitter() -> "WordTokenizer":
    """The words and sentences of this project, for datatrove's blocks."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Splitter(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return Analysis(text).words

        def sent_tokenize(self, text: str) -> list[str]:
            return [sentence.strip() for sentence in split_sentences(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = list(accumulate(map(len, split_sentences(text))))
            return list(zip([0, *ends], ends, strict=False))

    return Splitter("en")


def their_chain(recipe: Recipe, language_model: Path, splitter: "str | WordTokenizer" = "en") -> list["BaseFilter"]:
    """datatrove's blocks for a recipe, in our order."""
    from datatrove.pipeline import filters, formatters

    chain: list[Any] = []
    if recipe.languages:
        chain.append(language_filter(language_model, recipe.languages.keep, recipe.languages.min_score))
    if recipe.c4:
        chain.append(c4_filter(recipe.c4, splitter))
    if recipe.gopher_quality:
        chain.append(filters.GopherQualityFilter(language=splitter))
    if recipe.gopher_repetition:
        chain.append(filters.GopherRepetitionFilter(language=splitter))
    if recipe.fineweb:
        chain.append(filters.FineWebQualityFilter(language=splitter))
    if recipe.pii:
        chain.append(formatters.PIIFormatter())
    return chain


def read_theirs(wet: Path) -> Iterator[Any]:
    """The documents of a WET file by datatrove's reader."""
    from datatrove.pipeline.readers import WarcReader

    return WarcReader(str(wet.parent), glob_pattern=wet.name).run()


def run_theirs(wet: Path, chain: list["BaseFilter"]) -> dict[str, str]:
    """Text by address of the documents that datatrove's reader and blocks keep."""
    documents = read_theirs(wet)
    for block in chain:
        documents = block.run(documents)
    return {document.metadata["url"]: document.text for document in documents}


def read_ours(wet: Path) -> Iterator[Page]:
    """The pages of a WET file."""
    (unit,) = list_units("web", [wet])
    return (page for page in read_unit(unit, "web") if isinstance(page, Page))


def run_ours(wet: Path, recipe: Recipe) -> dict[str, Document]:
    """The documents that our reader and steps keep, by address."""
    with PageFilter(recipe, "trafilatura", Tally(1), Counter()) as keep:
        documents = map(keep, read_ours(wet))
        return {document.url: document for document in documents if document}


def search_seconds(folder: Path, documents: int, tasks: int = 8) -> dict[str, float]:
    """CPU seconds of each phase of the search for duplicates among `documents` random documents.

    A tenth of them share ten of their fourteen keys, and their text, with another one.
    """
    rng, setting = np.random.default_rng(0), MinHash()
    keys = rng.integers(0, np.iinfo(np.uint64).max, (documents, setting.buckets), np.uint64)
    texts = rng.integers(0, np.iinfo(np.uint64).max, (documents, 2), np.uint64)
    copies = np.flatnonzero(rng.random(documents) < 0.1)
    origins = rng.integers(0, documents, len(copies))
    keys[copies, :10], texts[copies] = keys[origins, :10], texts[origins]
    names = ("texts", "repeated", "signed", "edges", "members", "split", "near")
    exact, repeated, signed, edges, members, parts, found = (folder / name for name in names)
    for shard, own in enumerate(np.array_split(np.arange(documents), tasks)):
        places = places_of(shard, np.repeat(np.arange(len(own)), setting.buckets))
        write_table(signed, shard, np.column_stack([keys[own].ravel(), places]))
        offer(exact, shard, texts[own])
    every = range(tasks)
    return {
        "exact": _cpu(lambda: [find_repeated(exact, repeated, task, tasks) for task in every]),
        "match": _cpu(lambda: [near.match(signed, edges, task, tasks) for task in every]),
        "components": _cpu(lambda: near.find_components(edges, members, tasks)),
        "split": _cpu(lambda: [near.split(signed, members, parts, shard) for shard in every]),
        "cluster": _cpu(lambda: [near.cluster(parts, members, found, task) for task in every]),
    }


def _cpu(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
