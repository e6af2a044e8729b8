"""What PPO's models say about the tokens of the episodes: log-probabilities, values, and scores of whole responses."""

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
    """A model that gives one number for every token (`ValueObjective`, `LogProbObjective`), in a layout of its own."""

    engine: Engine
    micro_batch_size: int
    offload: bool
    """Whether it waits in the CPU's memory while it is not used."""


def compute_log_probs(model: TokenModel, episodes: Episodes) -> Tensor:
    """Log-probabilities of the labels under `model`, float32 [N, T], 0 outside the responses. Collective."""
    return _per_token(model, episodes)


def compute_values(model: TokenModel, episodes: Episodes) -> Tensor:
    """The critic's values, float32 [N, T], 0 outside the responses. Collective."""
    return _per_token(model, episodes) * episodes.mask


def compute_scores(model: TokenModel, episodes: Episodes) -> Tensor:
    """A reward model's values at the last tokens of the responses, float32 [N]. Collective."""
    return _per_token(model, episodes).gather(1, episodes.lengths[:, None] - 1).squeeze(1)


def _per_token(model: TokenModel, episodes: Episodes) -> Tensor:
    """Float32 [N, T] for all episodes, the same bits on every rank; each replica computes its share of the rows."""
    engine = model.engine
    rows = episodes.rows_of(engine.dims)
    batches = [episodes.inputs(part) for part in rows.split(model.micro_batch_size)]
    result = torch.zeros_like(episodes.logprobs)
    with on_device(engine, model.offload):
        result[rows] = torch.cat(engine.outputs(iter(batches), len(batches)))
    all_gather_rows([result], engine.dims)
    return result


def all_gather_rows(values: list[Tensor], dims: ParallelDims) -> None:
    """Give every rank the rows of all replicas, in place. Each rank has zeros in the rows of others. Collective."""
    if dims.world_size == 1:
        return
    contributes = dims.tensor_rank == 0 and dims.is_first_stage  # the other ranks of a replica have the same rows
    for value in values:
        if not contributes:
            value.zero_()
        dist.all_reduce(value)
