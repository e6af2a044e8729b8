"""Filter pages: each page becomes a document of the corpus, or a rule drops it and gives a reason."""

import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from megagpt.data.corpus.tally import Tally
from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.limits import Quality
from megagpt.data.corpus.text.page import Broken, Page
from megagpt.data.corpus.text.recipe import Recipe
from megagpt.data.corpus.text.rules.c4 import c4, load_bad_words
from megagpt.data.corpus.text.rules.fineweb import fineweb
from megagpt.data.corpus.text.rules.gopher import quality as gopher_quality
from megagpt.data.corpus.text.rules.gopher import repetition as gopher_repetition
from megagpt.data.corpus.text.rules.languages import load_identifier, wrong_language
from megagpt.data.corpus.text.rules.lines import lines
from megagpt.data.corpus.text.rules.pii import pii
from megagpt.data.corpus.text.rules.urls import load_url_rules
from megagpt.data.corpus.text.rules.verdict import Drop, Edit
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.data.corpus.text.inputs.extract import Library

_ENGLISH = "en"
"""Language of C4's bad words if no step identifies the language."""


class Document(NamedTuple):
    """A page that is kept."""

    text: str
    source: str
    url: str | None
    language: str | None
    """ISO 639-1 code; None if no step identifies it."""
    score: float | None
    """Score of the classifier, 0 to 1; None without a classifier."""
    bytes: int
    """Size of the record."""
    metadata: dict[str, str]


class Scorer(Protocol):
    """A classifier of quality."""

    def score(self, analysis: Analysis) -> float:
        """Similarity of a text to the good examples, 0 to 1."""


class _Dropped(Exception):
    """A step drops the page. The arguments are the rule and the reason."""


class PageFilter:
    """The steps of a recipe for a single page, in order; a context manager that ends the extraction process."""

    def __init__(
        self,
        recipe: Recipe,
        extractor: "Library",
        tally: Tally,
        seconds: Counter[str],
        scorer: Scorer | None = None,
    ) -> None:
        """Load the models and lists of the steps.

        tally: receives the counts of drops and changes
        seconds: receives the CPU seconds of each step
        scorer: replaces the recipe's `quality.model`

        Raises ConfigError for a missing file or package, DataError for a model that cannot be read.
        """
        self._recipe, self._tally, self._seconds = recipe, tally, seconds
        self._library, self._extractor = extractor, None
        self._url_rules = load_url_rules(recipe.urls) if recipe.urls else None
        self._identify = load_identifier(recipe.languages.model) if recipe.languages else None
        self._bad_words = load_bad_words(recipe.c4.bad_words) if recipe.c4 and recipe.c4.bad_words else None
        self._scorer = scorer or _load_scorer(recipe.quality.model) if recipe.quality else None

    def __enter__(self) -> "PageFilter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._extractor:
            self._extractor.close()

    def __call__(self, page: Page) -> Document | None:
        """The document of a page, or None if a step drops it."""
        changes: Counter[str] = Counter()
        try:
            document = self._document(page, changes)
        except _Dropped as drop:
            self._tally.drop(drop.args[0], page.source, page.bytes, drop.args[1])
            return None
        self._tally.redact(page.source, changes)
        return document

    def _document(self, page: Page, changes: Counter[str]) -> Document:
        """The document of a page; raises _Dropped. `changes` receives the counts of changed lines and spans."""
        recipe = self._recipe
        if self._url_rules and page.url:
            self._ask("urls", self._url_rules, page.url)
        if page.html is not None:
            page = self._extract(page)
        if not page.text or page.text.isspace():
            raise _Dropped("empty", "no text")
        language = self._ask("languages", self._identify, page.text) if self._identify else None
        if language:
            self._ask("languages", wrong_language, language, recipe.languages)
        analysis = Analysis(page.text)
        for name, edit in _EDITS.items():
            if limits := getattr(recipe, name):
                edited = self._ask(name, edit, analysis, limits)
                changes.update({f"{name}: {rule}": count for rule, count in edited.counts.items()})
                analysis = analysis if edited.text == analysis.text else Analysis(edited.text)
        code = language.code if language else None
        if self._bad_words:
            self._ask("c4", self._bad_words, analysis.text, code or _ENGLISH)
        for name, rule in _RULES.items():
            if limits := getattr(recipe, name):
                self._ask(name, rule, analysis, limits)
        score = self._ask("quality", self._scorer.score, analysis) if self._scorer else None
        if score is not None and not _is_kept(score, analysis.text, recipe.quality):
            raise _Dropped("quality", f"score {score:.4f}")
        text = analysis.text
        if recipe.pii:
            text, counts, _ = self._ask("pii", pii, text, recipe.pii)
            changes.update(counts)
        return Document(text, page.source, page.url, code, score, page.bytes, page.metadata)

    def _ask(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function and count its time. Returns its result; raises _Dropped if the result is a drop."""
        began = time.process_time()
        result = function(*arguments)
        self._seconds[step] += time.process_time() - began
        drop = result if isinstance(result, Drop) else result.drop if isinstance(result, Edit) else None
        if drop:
            raise _Dropped(f"{step}: {drop.rule}", drop.reason)
        return result

    def _extract(self, page: Page) -> Page:
        """The page with the text of its HTML; raises _Dropped."""
        from megagpt.data.corpus.text.inputs.extract import Extractor

        if self._extractor is None:  # the process is only started if there is HTML
            self._extractor = Extractor(self._library)
        elsewhere = self._extractor.cpu_seconds
        page = self._ask("extraction", self._extractor.extract, page)
        self._seconds["extraction"] += self._extractor.cpu_seconds - elsewhere
        if isinstance(page, Broken):
            raise _Dropped(page.rule, page.reason)
        return page


_EDITS = {"lines": lines, "c4": c4}
_RULES = {"gopher_quality": gopher_quality, "gopher_repetition": gopher_repetition, "fineweb": fineweb}
"""Steps in their order."""


def _is_kept(score: float, text: str, limits: Quality) -> bool:
    """Whether a document with this score is kept. The rule `share` decides later, when all scores are known."""
    if limits.rule == "pareto":
        from megagpt.data.corpus.text.quality.keep import keep_pareto

        return keep_pareto(score, text, limits.alpha)
    return limits.rule == "share" or score >= limits.threshold


@lru_cache(maxsize=1)
def _load_scorer(folder: str | None) -> Scorer:
    """The classifier in a folder."""
    if folder is None:
        raise ConfigError(
            "this recipe asks for the quality of texts: train a classifier with `megagpt data quality train` and give "
            "its folder as quality.model=FOLDER, or leave the step out with quality=null"
        )
    from megagpt.data.corpus.text.quality.model import load_model

    return load_model(folder)
