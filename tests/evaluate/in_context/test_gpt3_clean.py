"""Figures without the examples that the training data has, from what `megagpt data overlap` writes."""

import json

import pytest

from megagpt.data.corpus.text.decontamination.measuring import read_evaluations
from megagpt.errors import DataError
from megagpt.evaluate.in_context.clean import CleanSubsets
from megagpt.evaluate.in_context.gpt3 import evaluate_gpt3
from tests.evaluate.in_context.gpt3_models import TableLM, choice_task, make_task

PASSAGES = [
    "One morning the old miller found that all of his flour had turned a pale blue",
    "Nobody in the village had ever heard a goose sing until the baker bought one at the fair",
    "Three of the seven lamps on the bridge went out before the mayor began to speak of courage",
    "In winter the ferry crosses only at noon because the captain cannot stand the cold wind",
]


@pytest.fixture
def overlap(tmp_path):
    """Writes an evaluation file into `data`, and what is found of it in a corpus; returns its subsets."""

    def write(records: list[dict], corpus: list[str], name: str = "set/passages.jsonl") -> CleanSubsets:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        evaluations = read_evaluations([path])
        found = evaluations.nothing_found()
        for text in corpus:
            evaluations.look(text, found)
        evaluations.write(found, tmp_path / "clean")
        return CleanSubsets(tmp_path / "clean", tmp_path / "data")

    return write


def test_examples_that_a_reader_took_apart_are_found(overlap):
    subsets = overlap([{"text": text} for text in PASSAGES], ["As they say: " + PASSAGES[1].upper() + "!"])
    words = [text.split() for text in PASSAGES]
    # In another order, without the last word, which stands alone; one that is in no file.
    docs = [{"passage": " ".join(words[place][:-1]), "word": words[place][-1]} for place in (2, 1, 0)]
    docs.append({"passage": "This sentence is in none of the files that were looked at by anybody", "word": "here"})
    assert subsets.clean(docs) == {"0": True, "1": False, "2": True}
    named = [{**doc, "id": f"no. {place}"} for place, doc in enumerate(docs)]
    assert subsets.clean(named) == {"no. 0": True, "no. 1": False, "no. 2": True}


def test_of_records_that_share_a_text_the_one_with_the_others_counts(overlap):
    question = "Which of the following sentences was found in the corpus that we looked at"
    records = [{"q": question, "options": [text, "none"]} for text in PASSAGES]
    dirty = PASSAGES[3]
    subsets = overlap(records, [dirty])
    assert subsets.clean(records) == {"0": True, "1": True, "2": True, "3": False}
    # Where the others do not tell, it is clean only if all are.
    assert subsets.clean([{"q": question, "options": ["none"]}]) == {"0": False}


def test_short_examples_are_found(overlap):
    records = [{"context": f"\n{word} =", "completion": f" {word[::-1]}"} for word in ("abcde", "fghij")]
    assert overlap(records, []).clean(records) == {"0": True, "1": True}


def test_half_of_the_words_must_be_there(overlap):
    subsets = overlap([{"text": PASSAGES[0]}], [])
    assert subsets.clean([{"text": "One morning the old miller found that he was late again for the third time"}]) == {}
    assert subsets.clean([{"text": PASSAGES[0], "note": "five words of the reader"}]) == {"0": True}


def test_another_file_of_that_name_is_an_error(overlap, tmp_path):
    overlap([{"text": text} for text in PASSAGES], [])
    (tmp_path / "data" / "set" / "passages.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(DataError, match=r"passages.jsonl is not the file"):
        CleanSubsets(tmp_path / "clean", tmp_path / "data")
    (tmp_path / "clean" / "clean.json").write_text("{}")
    with pytest.raises(DataError, match=r"clean.json is not what `megagpt data overlap` writes"):
        CleanSubsets(tmp_path / "clean", tmp_path / "data")


def test_metrics_of_the_clean_subset_stand_beside_the_whole(tmp_path):
    docs = [{"q": f"q{place}", "options": ["a", "b"], "label": place % 2} for place in range(4)]
    lm = TableLM(lambda context, continuation: -1.0 if continuation == " a" else -2.0)  # right on 0 and 2
    clean = {"0": True, "1": False, "2": True}
    task = choice_task(tmp_path, [], docs)
    outcome = evaluate_gpt3(lm, task, 0, seed=0, clean=clean)
    assert outcome.metrics == {"acc": 0.5, "clean_acc": 1.0}
    assert [example.clean for example in outcome.examples] == [True, False, True, None]
    assert evaluate_gpt3(lm, task, 0, seed=0).metrics == {"acc": 0.5}


def test_a_perplexity_of_the_clean_subset(tmp_path):
    docs = [{"q": "x", "w": "y"}, {"q": "xx", "w": "y"}]
    fields = {"output_type": "loglikelihood", "doc_to_text": "q", "doc_to_target": "w"}
    lm = TableLM({("x", " y"): -1.0, ("xx", " y"): -2.0})
    task = make_task(tmp_path, [], docs, {"perplexity": True}, **fields)
    outcome = evaluate_gpt3(lm, task, 0, seed=0, clean={"0": False, "1": True})
    assert outcome.metrics["clean_perplexity"] == pytest.approx(7.38905609893065)
    assert outcome.metrics["perplexity"] == pytest.approx(4.4816890703380645)
    assert outcome.aggregate == {"perplexity": "exp(-mean)", "clean_perplexity": "exp(-mean)"}
