"""Renders a task of lm-eval by GPT-3's protocol.

Settings that lm-eval has no fields for are in the same YAML file under `metadata: gpt3:`; docs/gpt3_protocol.md lists
the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.in_context.demonstrations import content, draw
from megagpt.evaluate.in_context.outcomes import example_ids

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

SCORES = ("tokens", "answer_context", "partial")
METRICS = ("accuracy", "f1", "cmrc_f1", "bleu", "exact_match", "final_number")
BLANK = "_"


@dataclass(frozen=True)
class Gpt3Settings:
    """The block `metadata: gpt3:`. Templates are Jinja over the fields of an example, like lm-eval's doc_to_text."""

    shots: int | None = None
    """The published number of demonstrations."""
    score: str = "tokens"
    """How choices are compared: one of SCORES."""
    answer_context: str = "Answer:"
    """For score answer_context: the context in which an answer's unconditional probability is measured."""
    demonstrations: str | None = None
    """Field with a question's own demonstrations, shown in their order; None draws them from fewshot_split."""
    separator: str = "\n\n"
    """Text after the description and after each demonstration."""
    text: Any = None
    """Template of the question; None means lm-eval's doc_to_text. target and choices likewise default to lm-eval's."""
    target: Any = None
    """The right answer: a text, the index of a choice, or a list of these."""
    choices: Any = None
    """Answers to compare: a list, or a template of a list."""
    target_delimiter: str | None = None
    """Text between question and answer; None means a space if this block defines the answers, else lm-eval's."""
    few_shot_text: Any = None
    """Template of demonstrations, and of a question after demonstrations; None means `text`."""
    few_shot_target: Any = None
    """The answers that belong to `few_shot_text`."""
    description: str | None = None
    """First line of the prompt; None means lm-eval's."""
    metric: str | None = None
    """One of METRICS; None means exact_match if the model generates the answer, else accuracy."""
    until: tuple[str, ...] = ()
    """A generated answer ends before the first of these texts; empty means lm-eval's, else the separator."""
    max_gen_toks: int | None = None
    """Largest number of tokens of a generated answer; None means lm-eval's, else 64."""
    perplexity: bool = False
    """Whether the right answer's perplexity is a metric too."""
    chance: float | None = None
    """Expected accuracy of random answers; None means `metadata: chance`, else computed from the numbers of choices."""
    bleu_tokenizer: str | None = None
    """sacrebleu's tokenizer; None means zh for Chinese, char for Japanese, else GPT-3's intl."""


@dataclass(frozen=True)
class Question:
    """An example without demonstrations."""

    text: str
    """The text before the options."""
    options: tuple[tuple[str, str], ...]
    """(additional context, scored continuation) per option; a demonstration ends with both, concatenated."""
    right: frozenset[int]
    """Indices of the right options."""
    choices: tuple[str, ...]
    """Answers to compare, as the example names them; empty if the only option is the right answer."""
    targets: tuple[str, ...]
    """Right answers."""

    @property
    def demonstration(self) -> str:
        """The question with its right answer."""
        return self.text + "".join(self.options[min(self.right)])


class Gpt3Task:
    """A task of lm-eval whose examples are rendered by GPT-3's protocol.

    Raises ConfigError for an invalid block `metadata: gpt3:` or a kind of task that the protocol does not support.
    """

    def __init__(self, task: "ConfigurableTask") -> None:
        self.task = task
        self.name: str = task.config.task
        self.settings = read_settings(task)
        output = task.config.output_type
        if output == "loglikelihood_rolling":
            raise ConfigError(f"task {self.name} has no questions, it measures text: use protocol=lm-eval")
        if task.config.gen_prefix:
            raise ConfigError(f"task {self.name} has a gen_prefix: write it into metadata: gpt3: text")
        self.metric = self.settings.metric or ("exact_match" if output == "generate_until" else "accuracy")
        self.written = self.metric != "accuracy"
        """Whether the model generates the answer."""
        self.has_choices = not self.written and (
            self.settings.choices is not None or task.config.doc_to_choice is not None
        )
        if self.settings.score != "tokens" and not self.has_choices:
            raise ConfigError(
                f"task {self.name}: metadata: gpt3: score: {self.settings.score} is for tasks with choices"
            )
        self.own_judge = next((key for key in ("process_results", "filter_list") if task.config[key]), None)
        """The task's field by which lm-eval would judge answers, and which this protocol ignores; or None."""
        if self.written and self.own_judge and not self.settings.metric:
            raise ConfigError(
                f"task {self.name} judges generated answers by its own {self.own_judge}, which this protocol does "
                f"not use: use protocol=lm-eval, or give the task metadata: gpt3: metric ({', '.join(METRICS)})"
            )
        sampler = task.fewshot_cfg.sampler
        if isinstance(sampler, type) and not self.settings.demonstrations:
            raise ConfigError(
                f"task {self.name} chooses its demonstrations by its own {sampler.__name__}, which this protocol does "
                "not use: use protocol=lm-eval, or name the field that has them in metadata: gpt3: demonstrations"
            )
        self.pool: list[dict[str, Any]] = [] if self.settings.demonstrations else list(task.fewshot_docs() or [])
        """Examples from which demonstrations are drawn."""
        self._demonstration = lru_cache(maxsize=None)(self._of_pool)

    def examples(self, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
        """(id, example) of the evaluated examples, in the order of the data; only the first `limit` if given."""
        docs = list(self.task.eval_docs)
        return list(zip(example_ids(docs), docs, strict=True))[:limit]

    def description(self, doc: Mapping[str, Any]) -> str:
        """The description with the separator, or only the description if it ends with white space."""
        template = self.settings.description
        text = self.task.resolve_field(doc, self.task.config.description if template is None else template) or ""
        return text + self.settings.separator if text and not text[-1].isspace() else text

    def demonstrations(self, doc: Mapping[str, Any], name: str, count: int, seed: int) -> list[str]:
        """`count` demonstrations, with their right answers, for the question `doc`; fewer if there are fewer.

        They are the first of the question's own, or else drawn; drawn ones differ from the question in content and in
        rendered text. Raises DataError when the question lacks the field of its own demonstrations.
        """
        if field := self.settings.demonstrations:
            if field not in doc:
                raise DataError(
                    f"task {self.name}, question {name}: the example has no field {field} of demonstrations"
                )
            return [self._shown(example, f"question {name}, {field}") for example in doc[field][:count]]
        own = self._shown(doc, f"question {name}")

        def same(place: int) -> bool:
            return self.pool[place] == doc or self._demonstration(place) == own

        return [self._demonstration(place) for place in draw(seed, content(doc), len(self.pool), count, same)]

    def check_shots(self, shots: int) -> None:
        """Raise ConfigError when demonstrations are requested and there are none; too few are no error."""
        if not shots or self.settings.demonstrations:
            return
        if not self.pool:
            raise ConfigError(f"task {self.name} has no examples to draw demonstrations from: use shots=[0]")
        if self.task.config.num_fewshot == 0 and self.settings.shots is None:
            raise ConfigError(f"task {self.name} is defined without demonstrations (num_fewshot: 0): use shots=[0]")

    def _of_pool(self, place: int) -> str:
        return self._shown(self.pool[place], f"demonstration {place}")

    def _shown(self, doc: Mapping[str, Any], name: str) -> str:
        """An example with its right answer."""
        return self.question(doc, name, few_shot=True, shown=True).demonstration

    def question(self, doc: Mapping[str, Any], name: str, *, few_shot: bool, shown: bool = False) -> Question:
        """An example without demonstrations.

        name: for errors. few_shot: whether to use the few-shot templates. shown: whether the example is itself a
        demonstration, for which lm-eval has separate fields. Raises DataError when the right answer is not among the
        choices or a sentence lacks its blank, ConfigError when a template does not fit the example.
        """
        from jinja2 import TemplateError

        where = f"task {self.name}, {name}"
        try:
            return self._question(doc, where, few_shot, shown)
        except (TemplateError, SyntaxError, ValueError) as error:
            raise ConfigError(f"{where}: a template of the task does not fit the example: {error}") from None

    def _question(self, doc: Mapping[str, Any], where: str, few_shot: bool, shown: bool) -> Question:
        settings, shots = self.settings, self.task.fewshot_cfg
        text = _first(settings.few_shot_text if few_shot else None, settings.text, shots.doc_to_text if shown else None)
        target = _first(
            settings.few_shot_target if few_shot else None, settings.target, shots.doc_to_target if shown else None
        )
        choices = _first(settings.choices, shots.doc_to_choice if shown else None)
        own = any(form is not None for form in (settings.target, settings.choices, settings.few_shot_target))
        delimiter = _first(
            settings.target_delimiter,
            " " if own else None,
            shots.target_delimiter if shown else None,
            self.task.config.target_delimiter,
        )
        asked = self.task.doc_to_text(doc, text)
        answer = self.task.doc_to_target(doc, target)
        if self.has_choices:
            named = [str(choice) for choice in self.task.doc_to_choice(doc, choices)]
            return self._choice(asked, answer, named, delimiter, where)
        targets = tuple(map(str, answer if isinstance(answer, list) else [answer]))
        if self.task.config.doc_to_choice is not None and isinstance(answer, int):
            targets = (str(self.task.doc_to_choice(doc)[answer]),)
        if not targets:
            raise DataError(f"{where}: no right answer")
        return Question(str(asked), (("", delimiter + targets[0]),), frozenset([0]), (), targets)

    def _choice(self, asked: str | int, answer: Any, choices: list[str], delimiter: str, where: str) -> Question:
        if isinstance(asked, int):  # lm-eval's "multiple inputs": each choice is a context for the same answer
            options = [(choice, f"{delimiter}{answer}") for choice in choices]
            text, right = "", frozenset([asked])
        else:
            right = frozenset(_place(one, choices, where) for one in (answer if isinstance(answer, list) else [answer]))
            if self.settings.score == "partial":
                if asked.count(BLANK) != 1:
                    raise DataError(
                        f"{where}: partial scoring needs one blank ({BLANK}), but the sentence is {asked!r}"
                    )
                text, rest = asked.split(BLANK)
                options = [(choice, rest) for choice in choices]
            else:
                text, options = asked, [("", delimiter + choice) for choice in choices]
        if not right or not all(0 <= place < len(choices) for place in right):
            raise DataError(f"{where}: the right answer is {answer!r}, but there are {len(choices)} choices")
        targets = tuple(choices[place] for place in sorted(right))
        return Question(text, tuple(options), right, tuple(choices), targets)


def read_settings(task: "ConfigurableTask") -> Gpt3Settings:
    """The settings of a task, defaults without a block. Raises ConfigError that names the task and the wrong key."""
    block = dict((task.config.metadata or {}).get("gpt3") or {})
    where = f"task {task.config.task}: metadata: gpt3:"
    known = [field.name for field in fields(Gpt3Settings)]
    if unknown := sorted(block.keys() - set(known)):
        raise ConfigError(f"{where} has no key {unknown[0]!r}; the keys are {', '.join(known)}")
    if isinstance(block.get("until"), str):
        block["until"] = [block["until"]]
    block["until"] = tuple(block.get("until") or ())
    settings = Gpt3Settings(**block)
    for key, value, allowed in (("score", settings.score, SCORES), ("metric", settings.metric, (None, *METRICS))):
        if value not in allowed:
            raise ConfigError(f"{where} {key}: {value!r} is not one of {', '.join(map(str, allowed))}")
    for key in ("shots", "max_gen_toks"):
        value = getattr(settings, key)
        if value is not None and (type(value) is not int or value < (key == "max_gen_toks")):
            least = 1 if key == "max_gen_toks" else 0
            raise ConfigError(f"{where} {key}: {value!r} is not a whole number of at least {least}")
    return settings


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def _place(answer: Any, choices: list[str], where: str) -> int:
    """Index of the choice that an answer names by index or by text. Raises DataError for an unknown answer."""
    if isinstance(answer, int):
        return int(answer)
    if answer in choices:
        return choices.index(answer)
    if str(answer).isdigit():
        return int(answer)
    raise DataError(f"{where}: the right answer {answer!r} is none of the choices {choices}")
