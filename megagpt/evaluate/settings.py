"""Settings of evaluations; the fields are the keys of `megagpt evaluate`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megagpt.errors import ConfigError
from megagpt.evaluate.sandbox import Limits, Sandbox


@dataclass(frozen=True, kw_only=True)
class TasksEvaluation:
    """Tasks in context: zero-, one- and few-shot."""

    tasks: tuple[str, ...]
    """Names of tasks or suites (docs/in_context_tasks.md has those that come with megagpt), files of own tasks (.yaml),
    or names of lm-eval's."""
    shots: tuple[int, ...] = ()
    """Numbers of demonstrations in a prompt, such as [0,1,8]. Without it each task has its own: with protocol=gpt3 that
    of the paper."""
    protocol: Literal["lm-eval", "gpt3"] = "lm-eval"
    """Whose rules for prompts and scores: lm-eval's, or those that GPT-3 was judged by (docs/gpt3_protocol.md)."""
    data: Path | None = None
    """Folder of the data sets of the tasks that come with megagpt."""
    output: Path
    """Folder for the results."""
    checkpoint: Path | None = None
    """Run folder (its newest checkpoint) or one checkpoint: the model to evaluate."""
    huggingface: str | None = None
    """Folder or name of a causal model of transformers to evaluate instead, by lm-eval's own `hf`, as a peer."""
    limit: int | None = None
    """Only so many examples of a task, from the beginning."""
    seed: int = 1234
    """Of the draws of demonstrations."""
    clean: Path | None = None
    """Folder of `megagpt data overlap`, for figures on examples that are not in the training data (protocol=gpt3)."""
    tensor_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_parallel_size: int = 1
    """Groups of ranks that have some of the layers each. Ranks beyond both share the examples."""

    def __post_init__(self) -> None:
        for name in ("limit", "tensor_parallel_size", "pipeline_parallel_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not self.tasks or "" in self.tasks:
            raise ConfigError("tasks is empty: name at least one, such as tasks=[hellaswag]")
        if (self.checkpoint is None) == (self.huggingface is None):
            raise ConfigError(
                "give either checkpoint=..., a model to evaluate, or huggingface=..., a model of transformers"
            )
        if self.clean is not None and (self.protocol != "gpt3" or self.data is None):
            raise ConfigError("clean=... needs protocol=gpt3, which reports on clean subsets, and data=...")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Settings that all evaluations but those in context have."""

    task: str
    """What to evaluate: humaneval, humaneval_infilling, mbpp, edits or instructions of a model that generates text;
    sts, retrieval, code_search or probe of one that embeds it."""
    data: Path
    """The set's file or folder: problems as published (.jsonl or .json, plain or .gz), edits of `megagpt data edits`,
    instructions of `megagpt data instructions`, scored pairs, a BEIR folder, pairs of `megagpt data pairs`, or labelled
    texts."""
    output: Path
    """Folder for the results."""
    checkpoint: Path | None = None
    """Run folder (its newest checkpoint) or one checkpoint: the model to evaluate."""

    def __post_init__(self) -> None:
        for name in ("n", "limit", "max_new_tokens", "workers", "batch_size", "dimensions", "candidates"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class GenerationEvaluation(Evaluation):
    """Settings of evaluations of generated text."""

    completions: Path | None = None
    """.jsonl of completions to evaluate instead of a model's: {"task_id", "completion"}, or for edits {"response"}, one
    for each."""
    max_new_tokens: int = 512
    """Longest completion, tokens."""
    batch_size: int = 32
    """Completions generated at a time."""
    workers: int = len(os.sched_getaffinity(0))
    """Programs tested at a time."""
    sandbox: Sandbox = "bwrap"
    """bwrap, or none: run programs that nobody has read without protection."""
    timeout: float = Limits.wall_seconds
    """Seconds for a program and its tests."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.completions is None):
            raise ConfigError(
                "give either checkpoint=..., a model to evaluate, or completions=..., a file of its completions"
            )

    @property
    def limits(self) -> Limits:
        """Resources that a program may use."""
        return Limits(wall_seconds=self.timeout)


@dataclass(frozen=True, kw_only=True)
class CodeEvaluation(GenerationEvaluation):
    """Programming problems: pass@k."""

    n: int = 1
    """Completions of every problem."""
    k: tuple[int, ...] = (1,)
    """For which k to estimate pass@k; n must be as large."""
    temperature: float = 0.2
    """Of sampling; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus sampling."""
    seed: int = 0
    """Of sampling."""
    chat: bool = False
    """Ask as a user in a conversation, and take the code out of the Markdown fence in the response."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat and self.task == "humaneval_infilling":
            raise ConfigError(
                "humaneval_infilling has gaps to fill in, which are not asked for in chat: leave out chat"
            )
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k is {list(self.k)}; it must be a list of positive numbers")
        if self.completions is None and max(self.k) > self.n:
            raise ConfigError(
                f"pass@{max(self.k)} needs at least {max(self.k)} completions of every problem, not n={self.n}"
            )


@dataclass(frozen=True, kw_only=True)
class EditEvaluation(GenerationEvaluation):
    """Edits by instruction: exact match, similarity, and tests where there are any."""

    max_new_tokens: int = 256
    """Longest response, tokens."""
    limit: int | None = None
    """Only so many edits, from the beginning."""


@dataclass(frozen=True, kw_only=True)
class InstructionEvaluation(Evaluation):
    """Instructions with their checks: share of right answers."""

    max_new_tokens: int = 64
    """Longest answer, tokens."""
    batch_size: int = 32
    """Instructions answered at a time."""
    show: int = 10
    """Answers to print, of all kinds in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is None:
            raise ConfigError("task=instructions needs checkpoint=..., the model that answers")
        if self.show < 0:
            raise ConfigError(f"show is {self.show}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class EmbeddingEvaluation(Evaluation):
    """Settings of evaluations of embeddings."""

    sentence_transformer: str | None = None
    """Folder or name of a model of the library sentence-transformers to evaluate instead, as a peer to compare with."""
    dimensions: int | None = None
    """Only so many of the first numbers of each vector, for models trained so (Matryoshka); all without it."""
    batch_size: int = 32
    """Texts that a model of sentence-transformers embeds at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.sentence_transformer is None):
            raise ConfigError(
                "give either checkpoint=..., a model to evaluate, or sentence_transformer=..., a model of that library"
            )


@dataclass(frozen=True, kw_only=True)
class SimilarityEvaluation(EmbeddingEvaluation):
    """Similarity of sentences (STS): correlation with people's scores."""

    side: Literal["query", "document", "both"] = "query"
    """How to embed the sentences: all as queries, all as documents, or both: the first one as query, the second as
    document."""


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation(EmbeddingEvaluation):
    """Search in the documents of a BEIR folder, beside BM25."""

    split: str = "test"
    """Which judgements to use: the file qrels/SPLIT.tsv."""
    k: tuple[int, ...] = (1, 10, 100)
    """For which k to compute recall@k."""
    skip_same_id: bool = False
    """Leave out the document with the query's own id, as published figures for ArguAna and Quora do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k is {list(self.k)}; it must be a list of positive numbers")


@dataclass(frozen=True, kw_only=True)
class CodeSearchEvaluation(EmbeddingEvaluation):
    """Search for each query's positive among the positives of other pairs, beside BM25 and chance."""

    candidates: int = 1000
    """Positives to search among."""
    seed: int = 0
    """Decides which pairs come together."""


@dataclass(frozen=True, kw_only=True)
class ProbeEvaluation(EmbeddingEvaluation):
    """Linear probe: logistic regression on the embeddings of labelled texts."""

    test: Path | None = None
    """File of labelled texts to test on; without it a part of `data` is."""
    test_share: float = 0.2
    """Share of `data` to test on where there is no file for it, chosen by seed, with the same mix of labels."""
    side: Literal["query", "document"] = "document"
    """How to embed the texts."""
    folds: int = 10
    """Parts of the cross-validation that chooses the regularization."""
    seed: int = 0
    """Of the division into parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_share < 1:
            raise ConfigError(f"test_share is {self.test_share}; it must be between 0 and 1")
        if self.folds < 2:
            raise ConfigError(f"folds is {self.folds}; a cross-validation needs at least 2")


EMBEDDING_TASKS: dict[str, type[EmbeddingEvaluation]] = {
    "sts": SimilarityEvaluation,
    "retrieval": RetrievalEvaluation,
    "code_search": CodeSearchEvaluation,
    "probe": ProbeEvaluation,
}
"""The settings of each task on embeddings."""
