"""lm-eval reader of questions about held-out rules (`megagpt data rules`), with demonstrations of the same rule."""

from typing import Any

from datasets import Dataset
from lm_eval.api.samplers import ContextSampler

from megagpt.data.rules import questions
from megagpt.errors import ConfigError


def rule_questions(kind: str, count: int = 200, seed: int = 0, **_: Any) -> dict[str, Dataset]:
    """The part "test": `count` random questions of a kind.

    The label of a question is the index of its answer among the choices.
    """
    made = list(questions(count, seed, [kind]))
    for one in [example for question in made for example in (question, *question["examples"])]:
        one["label"] = one["choices"].index(one["answer"])
    return {"test": Dataset.from_list(made)}


class SameRule(ContextSampler):
    """Takes as demonstrations the first examples that the question carries, which follow the same rule.

    The K demonstrations are the first of the K + 1 demonstrations.
    """

    def sample(self, n: int, eval_doc: dict[str, Any] | None = None, **_: Any) -> list[dict[str, Any]]:
        """The first `n` examples. Raises ConfigError when the question has fewer."""
        if eval_doc is None:
            raise ValueError("demonstrations of a rule belong to a question")
        if n > len(eval_doc["examples"]):
            most = len(eval_doc["examples"])
            raise ConfigError(f"a question about a rule has {most} examples of its rule, too few for shots=[{n}]")
        return eval_doc["examples"][:n]
