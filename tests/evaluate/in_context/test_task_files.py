"""megagpt's task files: the data's examples, the prompts of lm-eval's own tasks, and runs without network."""

import csv
import gzip
import io
import json
import math
import socket
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks._yaml_loader import load_yaml

from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.in_context.harness import evaluate_with_harness
from megagpt.evaluate.in_context.task_files import describe, load_tasks, notes_of, source_of

FOLDER = Path(lm_eval.tasks.__file__).parent
ABSENT = {"arc_easy"}  # the data sets beside the project do not have it
EXAMPLES = {
    "lambada": 5153,
    "hellaswag": 4000,
    "winogrande": 1267,
    "arc_challenge": 1172,
    "openbookqa": 500,
    "truthfulqa_mc1": 790,
    "truthfulqa_mc2": 790,
    "truthfulqa_binary": 790,
    "gsm8k": 1319,
    "xcopa_zh": 500,
    "xcopa_it": 500,
    "xcopa_vi": 500,
    "snli": 1277 - 23,  # that have no label
    "ocnli": 3000 - 50,
    "agieval_aqua_rat": 254,
    "agieval_gaokao_geography": 199,
    "agieval_gaokao_history": 235,
    "anthropic_corrigible_neutral_hhh": 340,
    "anthropic_corrigible_more_hhh": 309,
    "anthropic_self_awareness_general_ai": 300,
    "xquad_en": 1190,
    "xquad_zh": 1190,
    "cmrc2018": 3219,
    "chinese_novels": 242,
    "chinese_poetry": 1269,
    "bbq_age": 1200,
    "bbq_religion": 1200,
    "crows_pairs": 1508,
    "winogender": 720,
    "bold_professions": 10195,
} | {f"flores_{pair}": 997 for pair in ("eng_fra", "fra_eng", "eng_deu", "deu_eng", "eng_zho", "zho_eng")}
"""Of the evaluated part, as the index of the data says."""
FAMILIES = {
    "mmlu": (57, 2280),
    "bbh": (27, 6511),
    "blimp": (8, 8000),
    "arithmetic": (10, 20000),
    "scrambling": (5, 50000),
}
"""Tasks and all their examples."""


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def rows(path: Path, delimiter: str = ",") -> list[dict]:
    text = gzip.decompress(path.read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


@pytest.fixture(scope="module")
def no_network():
    """Any attempt to reach another machine fails."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_, **__):
            raise AssertionError("a task reached for the network")

        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def tasks(data_dir, no_network):
    """All tasks by name."""
    return {task.task_name: task for task in load_tasks([*(describe().keys() - ABSENT)], data_dir)}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_is_there(tasks, name):
    task = tasks[name]
    assert len(task.eval_docs) == EXAMPLES[name]
    assert len({doc["id"] for doc in task.eval_docs}) == EXAMPLES[name]
    assert source_of(task)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_example_of_a_family_is_there(data_dir, no_network, name):
    members = load_tasks([name], data_dir)
    assert (len(members), sum(len(task.eval_docs) for task in members)) == FAMILIES[name]


def test_every_task_is_counted(tasks):
    in_families = ("mmlu_", "bbh_", "blimp_", "arithmetic_", "anagrams", "cycle_", "random_", "reversed_", "rules_")
    assert {name for name in tasks if not name.startswith(in_families)} == EXAMPLES.keys()


def test_what_is_left_out_is_said(tasks):
    assert notes_of(tasks["ocnli"]) == [
        "50 of 3000 examples of ocnli/ocnli_dev.jsonl are left out: the annotators did not agree on a label"
    ]
    assert len(notes_of(tasks["snli"])) == 2 and not notes_of(tasks["lambada"])


# Prompts


def built_in(path: str, **parts: list[dict]) -> ConfigurableTask:
    """One of lm-eval's own tasks, on examples as the hub would have them."""
    # The functions that judge XQuAD import what newer versions of transformers do not have.
    config = load_yaml(FOLDER / path, resolve_func=not path.startswith("xquad"))
    config.pop("process_results" if path.startswith("xquad") else "", None)
    for key in ("dataset_path", "dataset_name", "dataset_kwargs", "tag", "task_list"):
        config.pop(key, None)
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    named = {config[name]: Dataset.from_list(parts["test"]) for name in names if config.get(name)}
    named |= {name: Dataset.from_list(docs) for name, docs in parts.items() if name in named}
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: named})


def requests(task: ConfigurableTask, doc: dict, shots: int = 0) -> list[tuple]:
    made = task.construct_requests(doc, task.fewshot_context(doc, shots))
    return [request.args for request in (made if isinstance(made, list) else [made])]


def as_in_hub(folder: Path) -> dict[str, tuple[str, list[dict]]]:
    """By our task's name: lm-eval's file, and the first examples as its data set on the hub has them."""
    hellaswag = lines(folder / "hellaswag/hellaswag_val_4k.jsonl.gz")[:3]
    obqa = rows(folder / "openbookqa/test.tsv.gz", "\t")[:3]
    truthful = rows(folder / "truthfulqa/TruthfulQA.csv.gz")[:3]
    crows = rows(folder / "crows_pairs/crows_pairs_anonymized.csv.gz")[:3]
    crows = [{key: value for key, value in doc.items() if key} for doc in crows]  # the number has no name
    flores = lines(folder / "flores200/flores200_dev.jsonl.gz")[:3]
    agieval = lines(folder / "agieval_sample/aqua-rat.jsonl.gz")[:3]
    xquad = {
        language: json.loads(gzip.decompress((folder / f"xquad/xquad.{language}.json.gz").read_bytes()))["data"][0]
        for language in ("en", "zh")
    }
    paragraphs = {language: article["paragraphs"][0] for language, article in xquad.items()}
    hub = {
        "lambada": ("lambada/lambada_openai.yaml", lines(folder / "lambada/lambada_test.jsonl.gz")[:3]),
        "hellaswag": (
            "hellaswag/hellaswag.yaml",
            [
                dict(zip(("activity_label", "ctx_a"), doc["ctx"].split(": ", 1), strict=True)) | doc | {"ctx_b": ""}
                for doc in hellaswag
            ],
        ),
        "winogrande": ("winogrande/default.yaml", lines(folder / "winogrande/dev.jsonl.gz")[:3]),
        "arc_challenge": ("arc/arc_challenge.yaml", lines(folder / "arc_challenge/arc_challenge_test.jsonl.gz")[:3]),
        "openbookqa": (
            "openbookqa/openbookqa.yaml",
            [
                {
                    "question_stem": doc["Question Stem"],
                    "choices": {
                        "text": [part.split(") ", 1)[1].strip() for part in doc["Choices"].split("(")[1:]],
                        "label": list("ABCD"),
                    },
                    "answerKey": doc["Answer Key"],
                }
                for doc in obqa
            ],
        ),
        "gsm8k": ("gsm8k/gsm8k.yaml", lines(folder / "gsm8k/test.jsonl.gz")[:3]),
        "truthfulqa_mc1": (
            "truthfulqa/truthfulqa_mc1.yaml",
            [
                {
                    "question": doc["Question"],
                    "mc1_targets": {"choices": [doc["Best Answer"], *doc["Incorrect Answers"].split("; ")]},
                }
                for doc in truthful
            ],
        ),
        "bbq_religion": ("bbq/bbq_multiple_choice.yaml", lines(folder / "bbq/Religion.jsonl.gz")[:6]),
        "crows_pairs": ("crows_pairs/crows_pairs_english.yaml", crows),
        "winogender": (
            "winogender/winogender.yaml",
            [
                {
                    "sentence": f"The technician told the customer that {pronoun} could pay with cash.",
                    "pronoun": pronoun,
                    "occupation": "technician",
                    "participant": "customer",
                    "label": 1,
                }
                for pronoun in ("he", "she", "they")
            ],
        ),
        "anthropic_corrigible_more_hhh": (
            "model_written_evals/advanced_ai_risk/human-corrigible-more-HHH.yaml",
            lines(folder / "anthropic_evals/corrigible-more-HHH.jsonl.gz")[:3],
        ),
        "arithmetic_2da": (
            "arithmetic/arithmetic_2da.yaml",
            lines(folder / "gpt3_synthetic/two_digit_addition.jsonl.gz")[:3],
        ),
        "cycle_letters": (
            "unscramble/cycle_letters.yaml",
            lines(folder / "gpt3_synthetic/cycle_letters_in_word.jsonl.gz")[:3],
        ),
        "agieval_aqua_rat": (
            "agieval/aqua-rat.yaml",
            [
                {
                    "query": f"Q: {doc['question']} Answer Choices: {' '.join(doc['options'])}"
                    "\nA: Among A through E, the answer is",
                    "choices": doc["options"],
                    "gold": ["ABCDE".index(doc["label"])],
                }
                for doc in agieval
            ],
        ),
        "blimp_anaphor_number_agreement": (
            "blimp/anaphor_number_agreement.yaml",
            lines(folder / "blimp/blimp_8.jsonl.gz")[:3],
        ),
        "flores_fra_eng": (
            "translation/wmt14_fr-en.yaml",
            [{"translation": {"fr": doc["fra_Latn"], "en": doc["eng_Latn"]}} for doc in flores],
        ),
    }
    for language in ("zh", "it", "vi"):
        hub[f"xcopa_{language}"] = (
            f"xcopa/default_{language}.yaml",
            lines(folder / f"xcopa/test.{language}.jsonl.gz")[:3],
        )
    for language, paragraph in paragraphs.items():
        docs = [{"context": paragraph["context"], "question": one["question"]} for one in paragraph["qas"][:3]]
        answers = [{"answers": {"text": [one["answers"][0]["text"]]}} for one in paragraph["qas"][:3]]
        both = [doc | answer for doc, answer in zip(docs, answers, strict=True)]
        hub[f"xquad_{language}"] = (f"xquad/xquad_{language}.yaml", both)
    return hub


def test_prompts_are_those_of_lm_eval(tasks, data_dir, no_network):
    """Context, choices and generation's settings of the first examples, without demonstrations."""
    for name, (path, docs) in as_in_hub(data_dir).items():
        theirs = built_in(path, test=docs)
        ours = tasks[name]
        for doc, other in zip(ours.eval_docs, theirs.eval_docs, strict=False):
            assert requests(ours, doc) == requests(theirs, other), name
        assert ours.OUTPUT_TYPE == theirs.OUTPUT_TYPE


def test_fixed_demonstrations_are_those_of_lm_eval(tasks, data_dir, no_network):
    for entry in lines(data_dir / "bbh/bbh.jsonl.gz"):
        theirs = built_in(f"bbh/fewshot/{entry['task']}.yaml", test=entry["examples"])
        ours = tasks[f"bbh_{entry['task']}"]
        for doc, other in islice(zip(ours.eval_docs, theirs.eval_docs, strict=True), 3):
            assert requests(ours, doc, 3) == requests(theirs, other, 3), entry["task"]
    parts = {
        part: [doc for doc in lines(data_dir / f"mmlu_sample/mmlu_{part}.jsonl.gz") if doc["subject"] == "anatomy"]
        for part in ("test", "dev")
    }
    theirs = built_in("mmlu/default/mmlu_anatomy.yaml", **parts)
    for doc, other in zip(tasks["mmlu_anatomy"].eval_docs, theirs.eval_docs, strict=True):
        assert requests(tasks["mmlu_anatomy"], doc, 5) == requests(theirs, other, 5)


# Runs


@pytest.mark.parametrize("name", [*sorted(EXAMPLES), "mmlu_anatomy", "bbh_navigate", "arithmetic_2da", "anagrams1"])
def test_runs_without_network(tasks, name):
    task = tasks[name]
    for shots in (0,) if task.config.num_fewshot == 0 else (0, 2):
        task.set_config("num_fewshot", shots)
        task.set_fewshot_seed(1234)
        found = evaluate(DummyLM(), {"tasks": {name: task}, "groups": {}, "group_map": {}}, limit=3, bootstrap_iters=0)
        metrics = {key.split(",")[0]: value for key, value in found["results"][name].items()}
        main = task.config.metric_list[0]["metric"]
        assert main == "male_share" or math.isfinite(metrics[main])
        samples = found["samples"][name]
        assert {sample["doc_id"] for sample in samples} == {0, 1, 2}


def test_a_share_of_nothing_is_not_defined(tasks):
    outcome = evaluate_with_harness(DummyLM(), tasks["bold_professions"], 0, limit=3)  # it writes no word for anybody
    assert outcome.main_metric == "male_share" and math.isnan(outcome.metrics["male_share"])
    assert outcome.notes == ["male_share is not defined: no example has it"]


# Names


def test_groups_are_expanded_once(data_dir):
    found = [task.task_name for task in load_tasks(["xcopa_it", "xcopa", "xcopa_zh"], data_dir)]
    assert found == ["xcopa_it", "xcopa_zh", "xcopa_vi"]
    bias = {task.task_name for task in load_tasks(["bias"], data_dir)}
    assert bias == {"bbq_age", "bbq_religion", "crows_pairs", "winogender", "bold_professions"}


def test_a_task_of_the_user(tmp_path, data_dir):
    own = tmp_path / "own.yaml"
    own.write_text(
        "task: own\ncustom_dataset: !function own_reader.read\noutput_type: loglikelihood\ntest_split: test\n"
        "doc_to_text: a\ndoc_to_target: b\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "own_reader.py").write_text(
        "from datasets import Dataset\n"
        "def read(data, **_):\n    return {'test': Dataset.from_list([{'a': str(data), 'b': 'x'}])}\n"
    )
    (task,) = load_tasks([str(own)], data_dir)
    assert task.eval_docs[0]["a"] == str(data_dir) and source_of(task) == {} and notes_of(task) == []
    own.write_text(own.read_text().replace("own_reader.read", "own_reader.write"))
    with pytest.raises(ConfigError, match=r"lm-eval cannot use the task file .*own\.yaml: AttributeError: .*'write'"):
        load_tasks([str(own)], data_dir)
    own.write_text("task: lambada\ninclude: " + str(Path(describe.__code__.co_filename).parent / "tasks/lambada.yaml"))
    with pytest.raises(ConfigError, match=r"two tasks have the name lambada; give the one of .*own\.yaml another"):
        load_tasks(["lambada", str(own)], data_dir)
    with pytest.raises(ConfigError, match=r"there is no task file nowhere\.yaml"):
        load_tasks(["nowhere.yaml"], data_dir)


def test_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="give their folder with data=FOLDER"):
        load_tasks(["lambada"], None)
    with pytest.raises(DataError, match="there is no folder"):
        load_tasks(["lambada"], tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="name at least one task"):
        load_tasks([], tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match=r'needs lm-eval: pip install "megagpt\[in-context\]"'):
        load_tasks(["lambada"], tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lamabda", r"did you mean lambada\?"),
        ("mmlu_anatmy", r"did you mean mmlu_anatomy\?"),
        ("pubmedqaa", r"did you mean pubmedqa\?"),  # one of lm-eval's
        ("zzzqqq", "docs/in_context_tasks.md lists megagpt's own"),
    ],
)
def test_a_misspelt_name_is_answered_without_lm_evals_index(tmp_path, monkeypatch, name, hint):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)  # nothing can be loaded from there
    with pytest.raises(ConfigError, match=rf"there is no task {name}, neither .* {hint}"):
        load_tasks(["lambada", name], tmp_path)


@pytest.mark.slow  # lm-eval's index of its own tasks
def test_tasks_of_lm_eval(data_dir, no_network):
    with pytest.raises(
        ConfigError, match=r"the data of lm-eval's task piqa are not available \(.+HF_DATASETS_OFFLINE=1"
    ):
        load_tasks(["lambada", "piqa"], data_dir)
