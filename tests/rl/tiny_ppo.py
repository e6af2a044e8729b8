"""A run of PPO on a model of a few steps, for the tests of the stage."""

import json
import random
from pathlib import Path

from dist import run_distributed
from trace_calls import write_data

from megagpt.data.instructions import ranked_answers

ROLLOUT, BATCH, PROMPT, RESPONSE = 16, 8, 16, 6


def run_stage_once(overrides: list[str]) -> None:
    """Run a stage from the beginning to the end, on this rank."""
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.stages.session import run_stage

    assert run_stage(load(overrides)) == 0
    parallel_state.destroy_model_parallel()


def prepare(folder: Path) -> list[str]:
    """Make data, a language model and a reward model in `folder`; returns overrides of a run of PPO on them."""
    vocab_size, made = write_data(folder)
    turns = [[{"role": m.role, "content": m.content} for m in one.prompt] for one in made]
    ranked = [[{"content": a, "rank": rank} for a, rank in ranked_answers(one, random.Random(0))] for one in made]
    records = [{"messages": t, "answers": answers} for t, answers in zip(turns, ranked, strict=True)]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = [
        "model=tiny",
        f"model.vocab_size={vocab_size + 5}",
        "model.sequence_length=32",
        "model.num_layers=4",
        "model.hidden_size=32",
        "model.attention_dropout=0.1",
        "optim=demo",
        "optim.lr=1e-3",
        "optim.warmup_tokens=0",
        f"optim.global_batch_size={BATCH}",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.corpora=[{{path: {folder}/text}}]",
        "data.split=[0.9,0.1,0]",
        "stage.eval_interval=0",
        "checkpoint.interval=0",
        "logging.wandb=off",
        f"runs_dir={folder}",
    ]
    base = [*run, "run_name=base", "optim.train_tokens=2560", "optim.decay_tokens=2560"]
    run_distributed(run_stage_once, 1, base)
    reward = [
        *run,
        "stage=reward",
        "run_name=reward",
        f"checkpoint.load={folder}/base",
        f"data.rankings=[{folder}/rankings.jsonl]",
        "optim.train_epochs=1",
        "model.head=scalar",
    ]
    run_distributed(run_stage_once, 1, reward)
    return [
        *run,
        "stage=ppo",
        f"checkpoint.load={folder}/base",
        f"data.conversations=[{folder}/prompts.jsonl]",
        "ppo.reward=checker",
        f"ppo.reward_model={folder}/reward",
        f"ppo.critic={folder}/base",
        "ppo.epochs=2",
        f"ppo.rollout_batch_size={ROLLOUT}",
        f"ppo.episodes={2 * ROLLOUT}",
        f"ppo.max_prompt_tokens={PROMPT}",
        f"ppo.max_new_tokens={RESPONSE}",
        "ppo.ptx_ratio=2",
        "ppo.critic_lr=1e-3",
        "ppo.kl_target=0.01",
        "ppo.temperature=0.8",
        "ppo.critic_warmup_steps=1",
        "ppo.entropy_coefficient=0.01",
        "parallel.micro_batch_size=2",
        "optim.min_lr_ratio=1",
    ]
