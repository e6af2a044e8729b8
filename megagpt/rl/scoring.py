"""Runs PPO's models on episodes: log-probabilities, values, and scores of whole responses."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.engine import Engine
from megagpt.rl.episodes import Episodes
from megagpt.rl.offload import on_device


@dataclass(frozen=True)
class TokenModel:
    """A model that returns one number per token (`ValueObjective`, `LogProbObjective`), in its own layout."""

    engine: Engine
    micro_batch_size: int
    offload: bool
    """Whether the model is in CPU memory while it is not used."""


def compute_log_probs(model: TokenModel, episodes: Episodes) -> Tensor:
    """Log-probabilities of the labels under `model`, float32 [N, T], 0 outside the responses. Collective."""
    return _per_token(model, episodes)


def compute_values(model: TokenModel, episodes: Episodes) -> Tensor:
    """The critic's values, float32 [N, T], 0 outside the responses. Collective."""
    return _per_token(model, episodes) * episodes.mask


def compute_scores(model: TokenModel, episodes: Episodes) -> Tensor:
    """A reward model's outputs at the last tokens of the responses, float32 [N]. Collective."""
    return _per_token(model, episodes).gather(1, episodes.lengths[:, None] - 1).squeeze(1)


def _per_token(model: TokenModel, episodes: Episodes) -> Tensor:
    """The model's output for all episodes, float32 [N, T], bitwise equal on every rank.

    Each replica computes its share of the rows.
    """
    engine = model.engine
    rows = episodes.rows_of(engine.dims)
    batches = [episodes.inputs(part) for part in rows.split(model.micro_batch_size)]
    result = torch.zeros_like(episodes.logprobs)
    with on_device(engine, model.offload):
        result[rows] = torch.cat(engine.outputs(iter(batches), len(batches)))
    all_gather_rows([result], engine.dims)
    return result


def all_gather_rows(values: list[Tensor], dims: ParallelDims) -> None:
    """Fill in the rows of all replicas on every rank, in place. Collective.

    values: tensors [N, ...]; on entry each rank has zeros in the rows of other replicas.
    """
    if dims.world_size == 1:
        return
    contributes = dims.tensor_rank == 0 and dims.is_first_stage  # the other ranks of a replica have the same rows
    for value in values:
        if not contributes:
            value.zero_()
        dist.all_reduce(value)
