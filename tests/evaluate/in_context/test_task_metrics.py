"""Metrics of the task files, against lm-eval's own tasks, sacrebleu, and counts by hand."""

import csv
import gzip
import importlib
import json
import random
import statistics

import pytest

pytest.importorskip("lm_eval")

import sacrebleu
from datasets import Dataset

from megagpt.evaluate.in_context.tasks import answers, bias, choices, texts


def mean(parts: list[dict[str, float]], metric: str) -> float:
    return statistics.fmean(part[metric] for part in parts if metric in part)


@pytest.mark.parametrize("category", ["Age", "Religion"])
def test_bbq_as_lm_eval(data_dir, category):
    """The same answers, drawn at random with a lean, give the same five figures."""
    theirs = importlib.import_module("lm_eval.tasks.bbq.utils")
    with gzip.open(data_dir / f"bbq/{category}.jsonl.gz", "rt") as file:
        hub = theirs.process_docs(Dataset.from_list([json.loads(line) for line in file]))
    ours = bias.bbq(str(data_dir), category=category)["test"]
    rng = random.Random(0)
    found, expected = [], []
    for doc, other in zip(ours, hub, strict=True):
        assert doc["choices"] == theirs.doc_to_choice(other)
        results = [(rng.random() + (at < 2) + 0.3 * (at in doc["biased"]), False) for at in range(12)]
        if rng.random() < 0.4:
            results[5] = (3.0, False)
        found.append(bias.judge_bbq(doc, results))
        expected.append(theirs.process_results_multiple_choice(other, results))
    aggregate = {
        "acc": statistics.fmean,
        "accuracy_amb": theirs.agg_accuracy_amb,
        "accuracy_disamb": theirs.agg_accuracy_disamb,
        "amb_bias_score": theirs.agg_amb_bias_scores,
        "disamb_bias_score": theirs.agg_disamb_bias_scores,
    }
    for metric, function in aggregate.items():
        value = function([one[metric] for one in expected])
        assert mean(found, metric) == pytest.approx(value, abs=1e-12)
        assert value not in (0, 1)


def test_crows_pairs(data_dir):
    docs = bias.crows_pairs(str(data_dir))["test"]
    with gzip.open(data_dir / "crows_pairs/crows_pairs_anonymized.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [
        bias.judge_crows_pairs(doc, [(-float(len(text)), False) for text in doc["choices"]])  # the shorter is likelier
        for doc in docs
    ]
    shorter = [len(row["sent_more"]) < len(row["sent_less"]) for row in rows]
    assert mean(found, "pct_stereotype") == statistics.fmean(shorter)
    religion = [one for one, row in zip(shorter, rows, strict=True) if row["bias_type"] == "religion"]
    assert len(religion) == 105 and mean(found, "pct_stereotype_religion") == statistics.fmean(religion)
    against = [one for one, row in zip(shorter, rows, strict=True) if row["stereo_antistereo"] == "antistereo"]
    assert len(against) == 218 and mean(found, "pct_stereotype_antistereo") == statistics.fmean(against)
    assert found[0]["likelihood_diff"] == abs(len(rows[0]["sent_more"]) - len(rows[0]["sent_less"]))


def test_winogender(data_dir):
    """A model that goes by gender alone gets the gotchas wrong and the others right."""
    docs = bias.winogender(str(data_dir))["test"]
    assert {doc["pronoun"] for doc in docs} == {"he", "him", "his", "she", "her", "they", "them", "their"}
    assert all(f" {doc['pronoun']} " in doc["sentence"] for doc in docs)
    with (data_dir / "winogender/occupations-stats.tsv").open() as file:
        women = {row["occupation"]: float(row["bls_pct_female"]) for row in csv.DictReader(file, delimiter="\t")}
    found = []
    for doc in docs:
        fits = (women[doc["choices"][0]] >= 50) == (doc["gender"] == "female")
        found.append(bias.judge_winogender(doc, [(0.0 if fits else -2.0, False), (-1.0, False)]))
    for gender in ("male", "female"):
        assert mean(found, f"acc_{gender}_gotcha") == 0
        assert mean(found, f"acc_{gender}_other") == 1
        assert sum(f"acc_{gender}_gotcha" in one for one in found) == 120
        assert mean(found, f"acc_{gender}") == 0.5
    assert sum("acc_neutral" in one for one in found) == 240
    technician = next(doc for doc in docs if doc["id"] == "technician.customer.1.male")
    assert technician["label"] == 1 and technician["gotcha"]  # men are the majority, but he is the customer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man who does his work. She helps.", {"gendered_share": 1.0, "male_share": 1.0}),
        ("someone; she's good with Women, said he", {"gendered_share": 1.0, "male_share": 0.0}),
        ("a woman and a man", {"gendered_share": 0.0}),
        ("the manager, here", {"gendered_share": 0.0}),
    ],
)
def test_gender_polarity(text, expected):
    assert bias.judge_bold({}, [text]) == expected


@pytest.mark.parametrize(
    ("given", "right", "f1", "exact_match"),
    [
        ("The 308 points!", "308", 2 / 3, 0),
        ("a cat", "The cat.", 1, 1),
        ("", "something", 0, 0),
        ("New York City", "York, new", 4 / 5, 0),
        ("well-known", "well known", 0, 0),
        ("x x x y", "x y y", 4 / 7, 0),
        ("Theatre of an anthem", "theatre of anthem", 1, 1),
    ],
)
def test_spans_as_squad_has_them(given, right, f1, exact_match):
    """2 common words / (words of both), without case, punctuation and articles (arXiv 1606.05250, section 6.1)."""
    expected = {"f1": pytest.approx(f1), "exact_match": exact_match}
    assert answers.judge_span({"answers": [right]}, [given]) == expected
    assert answers.judge_span({"answers": ["quite another", right]}, [given]) == expected


def test_spans_in_chinese():
    doc = {"answers": ["光荣和ω-force", "光荣"]}
    for judge in (answers.judge_span, answers.judge_cmrc):
        assert judge(doc, ["光荣。"]) == {"f1": 1.0, "exact_match": 1.0}
        # 2 of 3 characters given, 2 of 2 wanted.
        assert judge(doc, ["光荣了"]) == {"f1": pytest.approx(0.8), "exact_match": 0.0}
        assert judge(doc, ["东京"]) == {"f1": 0.0, "exact_match": 0.0}
    # Both characters, but not side by side.
    assert answers.judge_span(doc, ["荣光"])["f1"] == 1.0
    assert answers.judge_cmrc(doc, ["荣光"])["f1"] == 0.5


def test_truthful_share_as_lm_eval():
    theirs = importlib.import_module("lm_eval.tasks.truthfulqa.utils")
    results = [(-3.5, False), (-1.0, True), (-2.0, False), (-7.0, False)]
    expected = theirs.process_results_mc2({"mc2_targets": {"labels": [1, 1, 0, 0]}}, results)
    assert choices.truthful_share({"right": 2}, results) == {"acc": pytest.approx(expected["acc"])}
    long = [(score - 2000, False) for score, _ in results]  # whose probabilities no float has
    assert choices.truthful_share({"right": 2}, long) == {"acc": pytest.approx(expected["acc"])}


def test_perplexity_per_byte_and_character():
    found = texts.per_byte({"text": "诗 a"}, [-10.0])
    assert found == {"bits_per_byte": (-10.0, 5), "byte_perplexity": (-10.0, 5), "character_perplexity": (-10.0, 3)}


def test_bleu_of_chinese_needs_its_words():
    pairs = [("周一，科学家宣布了一种新的诊断工具。", "周一，科学家宣布一种新的诊断工具。")]
    references, given = zip(*pairs, strict=True)
    by_zh = sacrebleu.BLEU(tokenize="zh").corpus_score(list(given), [list(references)]).score
    assert answers.bleu_chinese(pairs) == pytest.approx(by_zh) and by_zh > 50
    assert sacrebleu.corpus_bleu(list(given), [list(references)]).score < 5  # without spaces there is one word
