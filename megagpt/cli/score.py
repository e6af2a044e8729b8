"""`megagpt score`."""

import json
from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.cli.ranks import one_voice, restore_model, say
from megagpt.errors import ConfigError


@click.command("score", cls=RankedCommand, short_help="Score answers with a reward model.")
@click.argument("file", type=options.FILE)
@options.checkpoint
@click.option("--rankings", is_flag=True, help="The file holds prompts with ranked answers.")
@click.option("--micro-batch-size", type=int, default=8, show_default=True, help="Conversations scored at a time.")
@options.layout
@one_voice()
def command(
    file: Path,
    checkpoint: Path,
    rankings: bool,
    micro_batch_size: int,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
) -> None:
    """Score answers with a reward model.

    \b
    Examples
      megagpt score --checkpoint runs/reward answers.jsonl > scores.jsonl
      megagpt score --checkpoint runs/reward --nproc-per-node 2 --tensor-parallel-size 2 answers.jsonl

    Every line of FILE (.jsonl or .json, also .gz) is a conversation, {"messages": [...]} with the answer last, or with
    --rankings a prompt with ranked answers; docs/conversations.md and docs/reward.md describe the formats. It prints
    JSON lines in the same order: {"score": ...}, or {"scores": [...], "ranks": [...]}. The mean score of demonstrations
    is 0.
    """
    from megagpt.config.schema import ParallelConfig
    from megagpt.data.chat import encode_chat
    from megagpt.data.conversations import read_conversations
    from megagpt.data.ranked_loader import encode_ranking
    from megagpt.data.rankings import read_rankings
    from megagpt.evaluate.scores import score
    from megagpt.train.objectives import RewardObjective

    layout = ParallelConfig(
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        micro_batch_size=micro_batch_size,
    )
    config, engine, tokenizer = restore_model(checkpoint, layout, RewardObjective())
    if config.model.head != "scalar":
        kind = {"tokens": "a language model", "embedding": "an embedding model"}[config.model.head]
        raise ConfigError(f"{checkpoint} is {kind}, which gives no scores: give a run of stage reward")
    if rankings:
        ranked = read_rankings([file])
        rows = [encode_ranking(tokenizer, ranking).rows for ranking in ranked]
    else:
        rows = [[encode_chat(tokenizer, one.messages).tokens] for one in read_conversations([file])]
    scores = iter(score(engine, config, tokenizer, [row for group in rows for row in group]).tolist())
    for number, group in enumerate(rows):
        values = [next(scores) for _ in group]
        record = {"scores": values, "ranks": ranked[number].ranks} if rankings else {"score": values[0]}
        say(json.dumps(record) + "\n")
