"""A reward model's scores of whole conversations, and how well they agree with people's rankings."""

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
"""Parts of the confidences from 1/2 to 1 in a table of reliability."""


def score(engine: Engine, config: Config, tokenizer: Tokenizer, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of conversations at their last tokens, float64 [n], the same on every rank. Collective over all ranks.

    engine: gives a value for every token (`RewardObjective`). rows: int64 [length] each, of `encode_chat`.
    Raises DataError for one that is longer than the context.
    """
    limit, dims = config.model.sequence_length, engine.dims
    for number, row in enumerate(rows):
        if len(row) > limit:
            raise DataError(f"conversation {number} has {len(row)} tokens, above model.sequence_length ({limit})")
    scores = torch.zeros(len(rows), dtype=torch.float64, device=engine.device)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))  # little padding
    size, calls = config.parallel.micro_batch_size, dims.pipeline_size if dims.virtual_size > 1 else 1
    together = size * calls * dims.data_size
    for first in range(0, len(order), together):  # alike on all replicas, which may share out parameters
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
        scores.zero_()  # the other ranks of a replica have the same
    dist.all_reduce(scores)
    return scores.cpu().numpy()


def evaluate_rankings(
    engine: Engine, config: Config, tokenizer: Tokenizer, examples: Sequence[RankedExample]
) -> dict[str, float | int | list[dict[str, float]]]:
    """Loss, accuracy, margin and calibration over all pairs of a better and a worse answer. Collective.

    Beside them what chance and the lengths of answers alone would reach. Empty when there are no examples.
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
    """Accuracy of margins r_w - r_l [n] where pairs whose better answer is the longer one weigh as much in all as those
    whose better one is the shorter: length alone then reaches 0.5, whatever people prefer. Nothing without both kinds.

    longer: tokens of the better answer less those of the worse [n].
    """
    parts = [margins[longer > 0], margins[longer < 0]]
    if not all(len(part) for part in parts):
        return {}
    return {"length_balanced_accuracy": float(np.mean([in_order(part) for part in parts]))}


def in_order(differences: np.ndarray) -> float:
    """Share of differences that are above 0; one of exactly 0 is half a success, as chance would be."""
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def calibration(margins: np.ndarray) -> dict[str, float | list[dict[str, float]]]:
    """Whether a difference of scores means what it says, of margins r_w - r_l [n].

    The model prefers one answer of a pair with confidence sigmoid(|r_w - r_l|). `reliability` has, for each part of
    the confidences from 1/2 to 1 with pairs in it, their number, mean confidence and accuracy; `calibration_error` is
    the mean distance of the two, weighted by the number of pairs (Guo et al., arXiv 1706.04599).
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
