"""Score answers with a reward model.

python tools/score.py --checkpoint runs/reward answers.jsonl > scores.jsonl
torchrun --nproc-per-node 2 tools/score.py --checkpoint runs/reward --tensor-parallel-size 2 answers.jsonl

Every line of the file is a conversation, {"messages": [...]} with the answer last, as `megagpt.data.conversations`
reads it, or a prompt with ranked answers, as `megagpt.data.rankings` does (--rankings). Out come JSON lines in the same
order: {"score": ...}, or {"scores": [...], "ranks": [...]}. Demonstrations score 0 on average.
"""

import argparse
import json
from pathlib import Path

import torch.distributed as dist

from megagpt import env
from megagpt.config.schema import ParallelConfig
from megagpt.data.chat import encode_chat
from megagpt.data.conversations import read_conversations
from megagpt.data.ranked_loader import encode_ranking
from megagpt.data.rankings import read_rankings
from megagpt.errors import ConfigError, MegaGPTError
from megagpt.evaluate.scores import score
from megagpt.log import run_tool
from megagpt.parallel import launch
from megagpt.stages.weights import load_model
from megagpt.train.objectives import RewardObjective


def main() -> int:
    """Run the command line; the ranks that share the model act together, and the first one speaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, help=".jsonl, .json, also .gz")
    add("--checkpoint", type=Path, required=True, help="run folder of stage reward, or one checkpoint")
    add("--rankings", action="store_true", help="the file holds prompts with ranked answers")
    add("--micro-batch-size", type=int, default=8, help="conversations scored at a time (default %(default)s)")
    add("--tensor-parallel-size", type=int, default=1, help="ranks that share every layer (under torchrun)")
    add("--pipeline-parallel-size", type=int, default=1, help="stages of layers (under torchrun)")
    try:
        run(parser.parse_args())
        return 0
    except MegaGPTError as error:
        if launch.is_first_failure() if dist.is_initialized() else env.rank() == 0:
            raise
        return error.exit_code
    finally:
        launch.shutdown()


def run(arguments: argparse.Namespace) -> None:
    """Load the model, read the file, and print what each answer scores."""
    parallel = ParallelConfig(
        tensor_parallel_size=arguments.tensor_parallel_size,
        pipeline_parallel_size=arguments.pipeline_parallel_size,
        micro_batch_size=arguments.micro_batch_size,
    )
    config, engine, tokenizer = load_model(arguments.checkpoint, parallel)
    if config.model.head != "scalar":
        raise ConfigError(
            f"{arguments.checkpoint} is a language model, which scores nothing: give a run of stage reward"
        )
    engine.task = RewardObjective()
    if arguments.rankings:
        rankings = read_rankings([arguments.file])
        rows = [encode_ranking(tokenizer, ranking).rows for ranking in rankings]
    else:
        rows = [[encode_chat(tokenizer, one.messages).tokens] for one in read_conversations([arguments.file])]
    scores = iter(score(engine, config, tokenizer, [row for group in rows for row in group]).tolist())
    if env.rank() > 0:
        return
    for number, group in enumerate(rows):
        values = [next(scores) for _ in group]
        ranked = {"scores": values, "ranks": rankings[number].ranks} if arguments.rankings else {"score": values[0]}
        print(json.dumps(ranked))


if __name__ == "__main__":
    run_tool(main)
