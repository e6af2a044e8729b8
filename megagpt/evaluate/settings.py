"""Settings of evaluations; the fields are the keys of `megagpt evaluate`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megagpt.errors import ConfigError
from megagpt.evaluate.sandbox import Limits, Sandbox


@dataclass(frozen=True, kw_only=True)
class TasksEvaluation:
    """In-context tasks: zero-, one- and few-shot."""

    tasks: tuple[str, ...]
    """Names of megagpt's tasks or suites (docs/in_context_tasks.md lists them), paths of your task files (.yaml), or
    names of lm-eval's tasks."""
    shots: tuple[int, ...] = ()
    """Numbers of demonstrations in a prompt, such as [0,1,8]. By default each task has its own number; with
    protocol=gpt3 the paper's."""
    protocol: Literal["lm-eval", "gpt3"] = "lm-eval"
    """Rules for prompts and scores: lm-eval's, or GPT-3's (docs/gpt3_protocol.md)."""
    data: Path | None = None
    """Folder of the data sets of megagpt's tasks."""
    output: Path
    """Folder for the results."""
    checkpoint: Path | None = None
    """Run folder (its newest checkpoint) or one checkpoint: the model to evaluate."""
    huggingface: str | None = None
    """Folder or name of a causal model of transformers to evaluate instead, with lm-eval's `hf`, for comparison."""
    limit: int | None = None
    """Number of examples per task, from the beginning; by default all."""
    seed: int = 1234
    """Seed for drawing demonstrations."""
    clean: Path | None = None
    """Folder of `megagpt data overlap`: adds metrics of examples that are not in the training data (protocol=gpt3)."""
    tensor_parallel_size: int = 1
    """Number of ranks that share each layer."""
    pipeline_parallel_size: int = 1
    """Number of pipeline stages, each with a part of the layers. Further ranks are replicas that share the examples."""

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
    """Settings of all evaluations except in-context tasks."""

    task: str
    """Task: humaneval, humaneval_infilling, mbpp, edits or instructions for a model that generates text; sts,
    retrieval, code_search or probe for an embedding model."""
    data: Path
    """The task's file or folder: problems as published (.jsonl or .json, plain or .gz), edits of `megagpt data edits`,
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
    """.jsonl file of completions to evaluate instead of a model: {"task_id", "completion"}; for edits one {"response"}
    per edit."""
    max_new_tokens: int = 512
    """Largest number of tokens in a completion."""
    batch_size: int = 32
    """Number of completions that are generated at the same time."""
    workers: int = len(os.sched_getaffinity(0))
    """Number of programs that are tested at the same time."""
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
        """Limits of a program's resources."""
        return Limits(wall_seconds=self.timeout)


@dataclass(frozen=True, kw_only=True)
class CodeEvaluation(GenerationEvaluation):
    """Programming problems: pass@k."""

    n: int = 1
    """Number of completions per problem."""
    k: tuple[int, ...] = (1,)
    """Values of k for pass@k; n must be at least the largest."""
    temperature: float = 0.2
    """Temperature of sampling; 0 is greedy decoding."""
    top_p: float = 0.95
    """Probability mass of nucleus sampling."""
    seed: int = 0
    """Seed of sampling."""
    chat: bool = False
    """Ask as a user in a conversation, and extract the code from the Markdown fence in the response."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat and self.task == "humaneval_infilling":
            raise ConfigError("humaneval_infilling has gaps to fill in, which chat does not support: leave out chat")
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k is {list(self.k)}; it must be a list of positive numbers")
        if self.completions is None and max(self.k) > self.n:
            raise ConfigError(
                f"pass@{max(self.k)} needs at least {max(self.k)} completions of every problem, not n={self.n}"
            )


@dataclass(frozen=True, kw_only=True)
class EditEvaluation(GenerationEvaluation):
    """Edits by instruction: exact match, similarity, and tests if an edit has them."""

    max_new_tokens: int = 256
    """Largest number of tokens in a response."""
    limit: int | None = None
    """Number of edits, from the beginning; by default all."""


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
    """Folder or name of a model of the library sentence-transformers to evaluate instead, for comparison."""
    dimensions: int | None = None
    """Use only the first numbers of each vector, for models with Matryoshka training; by default all."""
    batch_size: int = 32
    """Number of texts that a model of sentence-transformers embeds at the same time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.sentence_transformer is None):
            raise ConfigError(
                "give either checkpoint=..., a model to evaluate, or sentence_transformer=..., a model of that library"
            )


@dataclass(frozen=True, kw_only=True)
class SimilarityEvaluation(EmbeddingEvaluation):
    """Similarity of sentences (STS): correlation with human scores."""

    side: Literal["query", "document", "both"] = "query"
    """How to embed the sentences: as queries, as documents, or (both) the first as query, the second as document."""


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation(EmbeddingEvaluation):
    """Search in the documents of a BEIR folder, compared with BM25."""

    split: str = "test"
    """Judgements to use: the file qrels/SPLIT.tsv."""
    k: tuple[int, ...] = (1, 10, 100)
    """Values of k for recall@k."""
    skip_same_id: bool = False
    """Leave out the document with the query's id, as published figures for ArguAna and Quora do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k is {list(self.k)}; it must be a list of positive numbers")


@dataclass(frozen=True, kw_only=True)
class CodeSearchEvaluation(EmbeddingEvaluation):
    """Search for each query's positive among the positives of other pairs, compared with BM25 and chance."""

    candidates: int = 1000
    """Number of positives to search among."""
    seed: int = 0
    """Seed for dividing the pairs into blocks of candidates."""


@dataclass(frozen=True, kw_only=True)
class ProbeEvaluation(EmbeddingEvaluation):
    """Linear probe: logistic regression on the embeddings of labelled texts."""

    test: Path | None = None
    """File of labelled texts for the test; by default a part of `data` (test_share)."""
    test_share: float = 0.2
    """Without `test`: fraction of `data` for the test, a random part with the same mix of labels."""
    side: Literal["query", "document"] = "document"
    """Whether to embed the texts as queries or as documents."""
    folds: int = 10
    """Number of parts of the cross-validation that chooses the regularization."""
    seed: int = 0
    """Seed for dividing the texts into parts."""

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
"""{name: settings} of the embedding tasks."""
