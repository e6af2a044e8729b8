"""Metrics of answers: rules of SQuAD, CMRC 2018 and GSM8K, exact match, BLEU, and the best of scored choices."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from megagpt.data.corpus.text.analysis import UNSPACED, split_words
from megagpt.errors import ConfigError

TIE = 1e-6
"""Scores that differ by at most this tie; it is about the float32 rounding error of a sum of log-probabilities."""

_ASCII = re.compile(f"[{re.escape(string.punctuation)}]")
_WIDE = "".join(chr(code) for code in range(0x80, 0x10000) if unicodedata.category(chr(code)).startswith("P"))
_ALL = re.compile(f"[{re.escape(string.punctuation + _WIDE)}]")
_UNSPACED = re.compile(f"[{UNSPACED}\u3000-\u303f\uff00-\uff65]")  # letters and punctuation
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CMRC_PUNCTUATION = re.compile(r"[-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』]")
_CMRC_CHARACTER = "([\u4e00-\u9fa5])"
_FINAL = re.compile(r"#### (-?[0-9.,]+)")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA = re.compile("[\u3041-\u30ff]")


def f1(answer: str, targets: Collection[str]) -> float:
    """F1 of the answer's words against the best-matching right answer, 0 to 1.

    If the answer or the right answer has no words, F1 is 1 if both have none, else 0, as in SQuAD 2.0's script. Words
    are defined as in `same_words`.
    """
    given, *right = _words([answer, *targets])
    return max(_f1(given, words, (Counter(given) & Counter(words)).total()) for words in right)


def same_words(answer: str, targets: Collection[str]) -> float:
    """SQuAD's exact match: 1 if the answer has the same words in the same order as one of the right answers, else 0.

    Words are lower-cased, without ASCII punctuation and English articles (arXiv 1606.05250). If any of the answers has
    letters or punctuation of a script without spaces, such as Han, MLQA's rule for Chinese applies (arXiv 1910.07475):
    each such letter is a word, all Unicode punctuation is removed, and articles stay.
    """
    given, *right = _words([answer, *targets])
    return float(given in right)


def _words(texts: Collection[str]) -> list[list[str]]:
    if any(_UNSPACED.search(text) for text in texts):
        return [split_words(_ALL.sub("", text.lower())) for text in texts]
    return [_ARTICLES.sub(" ", _ASCII.sub("", text.lower())).split() for text in texts]


def _f1(given: Sequence[str], right: Sequence[str], common: int) -> float:
    return 2 * common / (len(given) + len(right)) if given and right else float(given == right)


def cmrc_f1(answer: str, targets: Collection[str]) -> float:
    """F1 of the longest common run of words, for the best-matching right answer, 0 to 1; equals CMRC 2018's script.

    Each Chinese character is a word (arXiv 1810.07366).
    """
    given = _cmrc_words(answer)
    return max(_f1(given, right, _longest_run(given, right)) for right in map(_cmrc_words, targets))


def cmrc_exact_match(answer: str, targets: Collection[str]) -> float:
    """1 if the answer equals a right answer, ignoring case and CMRC 2018's punctuation, else 0."""
    given, *right = (_CMRC_PUNCTUATION.sub("", text.lower().strip()) for text in (answer, *targets))
    return float(given in right)


def _cmrc_words(text: str) -> list[str]:
    from nltk.tokenize import NLTKWordTokenizer

    split, words = NLTKWordTokenizer().tokenize, []
    for part in re.split(_CMRC_CHARACTER, _CMRC_PUNCTUATION.sub("", text.lower().strip())):
        words += [part] if re.fullmatch(_CMRC_CHARACTER, part) else split(part)
    return words


def _longest_run(given: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest contiguous sequence of words that both have."""
    longest, before = 0, [0] * (len(right) + 1)  # lengths of common runs that end at the previous word of `given`
    for word in given:
        ends = [0, *(before[place] + 1 if word == other else 0 for place, other in enumerate(right))]
        longest, before = max(longest, *ends), ends
    return longest


def final_number(answer: str, targets: Collection[str]) -> float:
    """GSM8K's rule: 1 if the number after the first #### equals a right answer's, ignoring commas, else 0.

    An answer without such a number is wrong (arXiv 2110.14168).
    """
    given, *right = (_FINAL.search(text) for text in (answer, *targets))
    numbers = {number[1].replace(",", "") for number in right if number}
    return float(given is not None and given[1].replace(",", "") in numbers)


def exact_match(answer: str, targets: Collection[str]) -> float:
    """1 if the answer equals a right answer, ignoring surrounding white space, else 0."""
    return float(answer.strip() in {target.strip() for target in targets})


def bleu_tokenizer(references: Collection[str]) -> str:
    """Name of sacrebleu's tokenizer for the references: "zh" for Chinese, "char" for Japanese, else GPT-3's "intl".

    GPT-3's signature is BLEU+case.mixed+numrefs.1+smooth.exp+tok.intl (arXiv 2005.14165, table 3.4); "intl" does not
    split languages without spaces into words.
    """
    if any(_KANA.search(text) for text in references):
        return "char"
    return "zh" if any(_HAN.search(text) for text in references) else "intl"


def corpus_bleu(answers: Sequence[str], targets: Sequence[Sequence[str]], tokenizer: str) -> float:
    """Corpus BLEU, 0 to 100, by sacrebleu (case-sensitive, exponential smoothing).

    targets: one or more reference translations for each answer. Raises ConfigError when sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise ConfigError('BLEU needs sacrebleu: pip install "megagpt[in-context]"') from None
    most = max(map(len, targets))
    references = [[of[place] if place < len(of) else None for of in targets] for place in range(most)]
    return BLEU(tokenize=tokenizer).corpus_score(list(answers), references).score


def sentence_bleu(answer: str, targets: Sequence[str], tokenizer: str) -> float:
    """Sentence BLEU, 0 to 100; n-gram orders longer than the sentence do not count."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True).sentence_score(answer, list(targets)).score


def best(scores: Sequence[float]) -> list[int]:
    """Indices of the highest score and of all scores that tie with it (see TIE)."""
    top = max(scores)
    return [place for place, score in enumerate(scores) if score == top or top - score <= TIE]
