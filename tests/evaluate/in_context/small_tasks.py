"""Small invented tasks of every kind that lm-eval has, as configurations of lm-eval."""

import random

NOUNS = ["the fox", "the cat", "a horse", "the farmer", "Anna", "Paul", "an old dog", "the naïve café"]
VERBS = ["jumps over", "gives hay to", "met", "sat on", "runs from", "is late for"]


def sentence(rng: random.Random) -> str:
    return f"{rng.choice(NOUNS)} {rng.choice(VERBS)} {rng.choice(NOUNS)}"


def documents(seed: int, count: int) -> list[dict]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        left, right = rng.randrange(100), rng.randrange(10)
        found.append(
            {
                "question": sentence(rng),
                "choices": [" ".join([rng.choice(NOUNS)] * rng.randrange(1, 3)) for _ in range(4)],
                "label": rng.randrange(4),
                "options": rng.sample(["Anna", "Paul", "the fox", "a horse"], 2),
                "rest": f" {rng.choice(VERBS)} the mat.",
                "word": rng.choice(["dog", "mat", "hay", "water"]),
                "sum": f"{left} plus {right} is",
                "total": f"{left + right}",
                "page": ". ".join(sentence(rng) for _ in range(rng.randrange(1, 40))),
            }
        )
    return found


def dataset(**_) -> dict:
    from datasets import Dataset

    return {"train": Dataset.from_list(documents(1, 12)), "test": Dataset.from_list(documents(2, 10))}


def contexts(document: dict) -> list[str]:
    """Winogrande's: the sentence up to where one of the options stands, with each of them."""
    return [f"{document['question']} because {option}" for option in document["options"]]


def task(name: str, output_type: str, metrics: list[str], shots: int = 0, **settings) -> dict:
    common = {
        "task": name,
        "custom_dataset": dataset,
        "training_split": "train",
        "fewshot_split": "train",
        "test_split": "test",
        "output_type": output_type,
        "num_fewshot": shots,
        "metric_list": [{"metric": metric} for metric in metrics],
    }
    return common | settings


def choice_task(name: str, shots: int, metrics: list[str], **settings) -> dict:
    asked = {"doc_to_text": "Question: {{question}}?\nAnswer:", "doc_to_choice": "choices", "doc_to_target": "label"}
    return task(name, "multiple_choice", metrics, shots, **asked | settings)


def small_tasks() -> list[dict]:
    stop = {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False}
    sums = {"doc_to_text": "{{sum}}", "doc_to_target": "{{total}}"}
    return [
        choice_task("zero_shot", 0, ["acc", "acc_norm", "acc_mutual_info"]),
        choice_task("five_shot", 5, ["acc", "acc_norm"], doc_to_text="{{question}}:"),
        choice_task("cut_context", 8, ["acc", "acc_norm"]),
        choice_task("single_token", 2, ["acc"], doc_to_choice=["A", "B", "C", "D"]),
        choice_task("trailing_space", 1, ["acc"], doc_to_text="{{question}}: ", target_delimiter=""),
        choice_task("partial", 2, ["acc"], doc_to_text=lambda d: d["label"] % 2, doc_to_choice=contexts)
        | {"doc_to_target": "rest", "target_delimiter": ""},
        task("last_word", "loglikelihood", ["perplexity", "acc"], doc_to_text="{{question}}", doc_to_target="{{word}}"),
        task("empty_context", "loglikelihood", ["perplexity", "acc"], doc_to_text="", doc_to_target="{{question}}"),
        task("greedy_sum", "loglikelihood", ["acc"], 4, **sums),
        task("pages", "loglikelihood_rolling", ["word_perplexity", "byte_perplexity", "bits_per_byte"])
        | {"doc_to_text": "", "doc_to_target": "{{page}}"},
        task("free_text", "generate_until", ["exact_match"], 1, generation_kwargs=stop, **sums),
        task("long_prompt", "generate_until", ["exact_match"], generation_kwargs=stop | {"until": ["\n\n"]})
        | {"doc_to_text": "{{page}}", "doc_to_target": "{{word}}"},
    ]
