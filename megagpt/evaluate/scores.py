"""Scores conversations with a reward model, and evaluates the agreement with human rankings."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from megagpt.config.schema import Config
from megagpt.data.ranked_loader import RankedExample, ranked_batch, row_length
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError
from megagpt.parallel.engine import Engine

BINS = 10
"""Number of bins of the confidences, from 1/2 to 1, in a reliability table."""


def score(engine: Engine, config: Config, tokenizer: Tokenizer, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of conversations at their last tokens, float64 [n], the same on every rank. Collective over all ranks.

    engine: returns a value per token (`RewardObjective`). rows: token ids, int64 [length] each, from `encode_chat`.
    Raises DataError for a conversation that is longer than the context.
    """
    limit, dims = config.model.sequence_length, engine.dims
    for number, row in enumerate(rows):
        if len(row) > limit:
            raise DataError(f"conversation {number} has {len(row)} tokens, above model.sequence_length ({limit})")
    scores = torch.zeros(len(rows), dtype=torch.float64, device=engine.device)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))  # little padding
    size, calls = config.parallel.micro_batch_size, dims.pipeline_size if dims.virtual_size > 1 else 1
    together = size * calls * dims.data_size
    for first in range(0, len(order), together):  # the same number of passes on all replicas: they may shard parameters
        begin = first + dims.data_rank * size * calls
        chosen = [order[begin + call * size : begin + (call + 1) * size] for call in range(calls)]
        length = row_length(max((len(rows[n]) for part in chosen for n in part), default=1), config)
        batches = [
            ranked_batch([rows[n] for n in part], range(len(part)), [0] * len(part), size, length, tokenizer)
            for part in chosen
        ]
        for part, batch, values in zip(chosen, batches, engine.outputs(iter(batches), calls), strict=True):
            scores[part] = batch.to(engine.device).scores(values)[: len(part)].double()
    if dims.tensor_rank > 0 or not dims.is_first_stage:
        scores.zero_()  # only one rank of each replica contributes to the sum
    dist.all_reduce(scores)
    return scores.cpu().numpy()


def evaluate_rankings(
    engine: Engine, config: Config, tokenizer: Tokenizer, examples: Sequence[RankedExample]
) -> dict[str, float | int | list[dict[str, float]]]:
    """Loss, accuracy, margin and calibration over all pairs of a better and a worse answer. Collective.

    Also the accuracies of chance and of the answers' lengths, as baselines. Empty when there are no examples.
    """
    if not examples:
        return {}
    scores = score(engine, config, tokenizer, [row for example in examples for row in example.rows])
    starts = np.cumsum([0, *(len(example.rows) for example in examples)])
    margins, longer = [], []
    for example, start in zip(examples, starts[:-1].tolist(), strict=True):
        ranks, lengths = np.array(example.ranks), np.array(example.answer_tokens)
        own = scores[start : start + len(ranks)]
        better, worse = np.nonzero(ranks[:, None] < ranks)
        margins.append(own[better] - own[worse])
        longer.append(lengths[better] - lengths[worse])
    losses = [np.logaddexp(0, -each).mean() for each in margins]
    pairs, differences = np.concatenate(margins), np.concatenate(longer)
    return {
        "loss": float(np.mean(losses)),
        "accuracy": in_order(pairs),
        "margin": float(pairs.mean()),
        "pairs": len(pairs),
        "prompts": len(examples),
        "chance_accuracy": 0.5,
        "longer_accuracy": in_order(differences),
        "shorter_accuracy": in_order(-differences),
        **length_balanced(pairs, differences),
        **calibration(pairs),
    }


def length_balanced(margins: np.ndarray, longer: np.ndarray) -> dict[str, float]:
    """Mean of the accuracies on pairs whose better answer is longer and on pairs whose better answer is shorter.

    A rule that only uses length reaches 0.5. Empty if one of the two kinds is missing. margins: r_w - r_l [n], score of
    the better answer minus score of the worse. longer: the same difference of their numbers of tokens, [n].
    """
    parts = [margins[longer > 0], margins[longer < 0]]
    if not all(len(part) for part in parts):
        return {}
    return {"length_balanced_accuracy": float(np.mean([in_order(part) for part in parts]))}


def in_order(differences: np.ndarray) -> float:
    """Fraction of differences above 0; a difference of exactly 0 counts as one half."""
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def calibration(margins: np.ndarray) -> dict[str, float | list[dict[str, float]]]:
    """Calibration of score differences; margins: r_w - r_l [n].

    The model prefers one answer of a pair with confidence sigmoid(|r_w - r_l|). `reliability` has, for each nonempty
    bin of confidences from 1/2 to 1, the number of pairs, mean confidence and accuracy. `calibration_error` is the mean
    distance of confidence and accuracy, weighted by the number of pairs (Guo et al., arXiv 1706.04599).
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    part = np.minimum((confidence - 0.5) * 2 * BINS, BINS - 1).astype(int)
    table, error = [], 0.0
    for number in np.unique(part):
        chosen = part == number
        expected, right = float(confidence[chosen].mean()), in_order(margins[chosen])
        table.append({"confidence": expected, "accuracy": right, "pairs": int(chosen.sum())})
        error += abs(expected - right) * chosen.mean()
    return {"calibration_error": float(error), "reliability": table}
