"""The pre-flight check: every problem at once, each named."""

import dataclasses
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from megagpt.config.schema import CheckpointConfig, Config, CorpusConfig, DataConfig, ModelConfig, OptimConfig
from megagpt.plan.check import check_run, data_files
from megagpt.plan.environment import check_environment, slow_ranks
from tests.dist import run_distributed

WORDS = ["to be or not to be, that is the question"] * 50


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Config:
    """A run whose data is in place."""
    from megagpt.data.indexed import write_corpus
    from megagpt.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("prepared")
    tokenizer = train_tokenizer(WORDS, 300)
    tokenizer.save(folder / "tokenizer.json")
    tokens = np.arange(20_000, dtype=np.uint16) % tokenizer.vocab_size
    lengths = np.full(20, 1000, dtype=np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / "corpus", [(lengths, tokens)], 20, about)
    return Config(
        runs_dir=str(folder / "runs"),
        model=ModelConfig(
            num_layers=2,
            hidden_size=32,
            num_attention_heads=2,
            sequence_length=32,
            vocab_size=tokenizer.vocab_size,
        ),
        data=DataConfig(str(folder / "tokenizer.json"), (CorpusConfig(str(folder / "corpus")),)),
        optim=OptimConfig(train_tokens=40_000, global_batch_size=4),
    )


def replaced(config: Config, group: str, **values) -> Config:
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **values)})


def saved_model(folder: Path, config: Config) -> None:
    """A run folder with a checkpoint of a model that `config` describes."""
    import torch

    from megagpt.checkpoint import Checkpointer, Shard
    from megagpt.config.load import to_dict

    with Checkpointer(folder / "checkpoints", CheckpointConfig()) as checkpointer:
        shards = [Shard.whole("model/weight", torch.zeros(4))]
        checkpointer.save(1, shards, {}, {}, {"config": to_dict(config), "layout": {}})


def test_nothing_is_wrong(prepared):
    problems, facts = check_run(prepared)
    assert not problems
    assert any("2.04 epochs" in fact for fact in facts)  # 40,000 of 20,000 x 0.98


def test_conversations_and_rankings_are_read(prepared, tmp_path):
    answers = [{"content": "a", "rank": 0}, {"content": "b", "rank": 1}]
    lines = {"talks": {"instruction": "a", "output": "b"}}
    lines["ranked"] = {"messages": [{"role": "user", "content": "q"}], "answers": answers}
    files = {name: str(tmp_path / f"{name}.jsonl") for name in lines}
    for name, record in lines.items():
        Path(files[name]).write_text(f"{json.dumps(record)}\n" * 3)
    config = replaced(prepared, "data", conversations=(files["talks"],), rankings=(files["ranked"],))
    problems, facts = check_run(config)
    assert not problems
    assert {"3 conversations", "3 prompts with ranked answers"} <= set(facts)
    supervised = replaced(replaced(config, "data", corpora=(CorpusConfig("absent"),)), "stage", name="sft")
    assert not check_run(supervised, hashes=True)[0]  # which reads no corpus
    assert not any("absent" in str(path) for path in data_files(supervised))
    broken = replaced(prepared, "data", conversations=(files["talks"], "absent.jsonl"), rankings=(files["talks"],))
    assert "absent.jsonl" in "\n".join(check_run(broken)[0])


def test_a_flipped_bit_in_a_corpus_is_found_by_its_hash(prepared, tmp_path):
    shutil.copytree(Path(prepared.data.corpora[0].path).parent, tmp_path, dirs_exist_ok=True)
    corpus = CorpusConfig(str(tmp_path / "corpus"))
    config = replaced(prepared, "data", corpora=(corpus,))
    problems, facts = check_run(config, hashes=True)
    assert not problems
    assert f"{corpus.path}: its hashes are right" in facts
    for name in ("corpus.bin", "corpus.idx"):
        content = bytearray((tmp_path / name).read_bytes())
        content[-9] ^= 1
        (tmp_path / name).write_bytes(content)
        assert not check_run(config)[0]  # sizes and headers are right
        (problem,) = check_run(config, hashes=True)[0]
        assert f"{name} is damaged" in problem
        content[-9] ^= 1
        (tmp_path / name).write_bytes(content)
    about = json.loads((tmp_path / "corpus.json").read_text())
    (tmp_path / "corpus.json").write_text(json.dumps({k: v for k, v in about.items() if k != "bin_sha256"}))
    problems, facts = check_run(config, hashes=True)
    assert not problems
    assert any("before hashes were kept" in fact for fact in facts)


def test_every_problem_at_once(prepared):
    config = replaced(prepared, "optim", train_tokens=10**9)
    config = replaced(config, "model", vocab_size=100, hidden_size=12288, num_layers=96)
    config = replaced(config, "checkpoint", keep_last=10**6)
    problems, _ = check_run(config)
    text = "\n".join(problems)
    for named in ("model.vocab_size=", "holds token", "epochs, more than", "checkpoint.keep_last"):
        assert named in text
    assert len(problems) == 4


def test_missing_and_foreign_data(prepared, tmp_path):
    corpora = (*prepared.data.corpora, CorpusConfig(str(tmp_path / "none")))
    other = tmp_path / "tokenizer.json"
    content = json.loads(Path(prepared.data.tokenizer).read_text())
    other.write_text(json.dumps(content, indent=3))
    problems, _ = check_run(replaced(prepared, "data", corpora=corpora, tokenizer=str(other)))
    assert len(problems) == 2
    assert "a tokenizer other than" in problems[0]
    assert "none" in problems[1]
    problems, _ = check_run(replaced(prepared, "data", tokenizer=str(tmp_path / "absent.json")))
    assert len(problems) == 1
    assert "absent.json" in problems[0]


def test_truncated_corpus(prepared, tmp_path):
    for suffix in (".bin", ".idx", ".json"):
        shutil.copy(f"{prepared.data.corpora[0].path}{suffix}", tmp_path / f"cut{suffix}")
    os.truncate(tmp_path / "cut.bin", 100)
    problems, _ = check_run(replaced(prepared, "data", corpora=(CorpusConfig(str(tmp_path / "cut")),)))
    assert len(problems) == 1
    assert "cut.bin is truncated" in problems[0]


def test_fim_needs_its_tokens(prepared):
    problems, _ = check_run(replaced(prepared, "data", fim_rate=0.5))
    assert len(problems) == 1
    assert "<fim_prefix>" in problems[0]


def test_checkpoint_is_valid_and_of_the_same_model(prepared, tmp_path):
    config = dataclasses.replace(prepared, runs_dir=str(tmp_path))
    folder = tmp_path / config.run_name / "checkpoints"
    saved_model(folder.parent, config)
    problems, facts = check_run(config)
    assert not problems
    assert any("which is valid" in fact for fact in facts)
    problems, _ = check_run(replaced(config, "model", num_layers=4))
    assert len(problems) == 1
    assert "model.num_layers (2 there, 4 here)" in problems[0]
    size = config.model.vocab_size
    other = replaced(dataclasses.replace(config, run_name="other"), "checkpoint", load=str(folder.parent))
    problems, facts = check_run(replaced(other, "model", vocab_size=size + 9))  # its vocabulary may grow
    assert not problems
    assert any("which is valid" in fact for fact in facts)
    problems, _ = check_run(replaced(config, "model", vocab_size=size + 9))  # a run's own may not
    assert f"model.vocab_size ({size} there, {size + 9} here)" in problems[0]
    (file,) = folder.glob("step_*/rank_*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    problems, _ = check_run(config)
    assert len(problems) == 1
    assert file.name in problems[0]


def test_what_ppo_starts_from_can_score(prepared, tmp_path):
    for name, head in (("writes", "tokens"), ("scores", "scalar")):
        saved_model(tmp_path / name, replaced(prepared, "model", head=head))
    ppo = replaced(dataclasses.replace(prepared, runs_dir=str(tmp_path)), "stage", name="ppo")
    ppo = replaced(ppo, "ppo", episodes=100, max_prompt_tokens=16, max_new_tokens=16)
    ppo = replaced(ppo, "checkpoint", load=str(tmp_path / "writes"))
    problems, facts = check_run(replaced(ppo, "ppo", reward_model=str(tmp_path / "scores")))
    assert not problems
    assert any("ppo.reward_model" in fact and "scalar head" in fact for fact in facts)
    assert any("1.31 epochs" in fact for fact in facts)  # 100 answers x 8 texts x 32 tokens of 20,000 x 0.98
    problems, _ = check_run(replaced(ppo, "ppo", reward_model=str(tmp_path / "writes")))
    assert len(problems) == 1
    assert "never trained to score" in problems[0]
    problems, _ = check_run(replaced(ppo, "ppo", reward_model=str(tmp_path / "nowhere")))
    assert len(problems) == 1
    assert "nowhere" in problems[0]
    for name, number in (("scores", 0), ("writes", 1)):
        problems, _ = check_run(replaced(prepared, "stage", reward_model=str(tmp_path / name)))
        assert len(problems) == number
        assert all("stage.reward_model" in problem and "never trained to score" in problem for problem in problems)


@pytest.fixture
def embedding(prepared, tmp_path) -> Config:
    """A run of stage embed with 64 pairs, which starts from a language model."""
    pairs = [{"query": f"to be {number}", "positive": f"or not to be {number}"} for number in range(64)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    saved_model(tmp_path / "writes", prepared)
    config = replaced(dataclasses.replace(prepared, runs_dir=str(tmp_path)), "stage", name="embed")
    config = replaced(replaced(config, "model", head="embedding"), "checkpoint", load=str(tmp_path / "writes"))
    data = {"corpora": (CorpusConfig("absent"),), "pairs": (str(tmp_path / "pairs.jsonl"),), "split": (1.0, 0.0, 0.0)}
    return replaced(config, "data", **data)


def test_pairs_are_read(embedding, tmp_path):
    problems, facts = check_run(embedding, hashes=True)  # reads no corpus
    assert not problems
    assert any(fact.startswith("64 pairs an epoch in 16 steps, ") for fact in facts)
    assert Path(embedding.data.pairs[0]) in data_files(embedding)
    assert not any("absent" in str(path) for path in data_files(embedding))
    (tmp_path / "scored.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": 1}\n' * 2)
    (tmp_path / "scored.csv").write_text("a,b,1\nc,d,2\ne,f,3\n")
    for name, count in (("scored.jsonl", 2), ("scored.csv", 3)):
        scored = replaced(embedding, "embed", scored_pairs=str(tmp_path / name))
        problems, facts = check_run(scored)
        assert not problems and f"{count} pairs with scores" in facts
        assert tmp_path / name in data_files(scored)


def test_bad_scores_hide_no_other_problem(embedding, tmp_path):
    (tmp_path / "scored.csv").write_text("a,b,good\nc,d,2\n")
    scored = replaced(embedding, "embed", scored_pairs=str(tmp_path / "scored.csv"))
    problems, facts = check_run(scored)
    (problem,) = problems
    assert f"{tmp_path}/scored.csv:1: score is 'good', not a number" in problem
    assert any(fact.startswith("64 pairs an epoch") for fact in facts)


@pytest.mark.parametrize(
    ("group", "values", "named"),
    [
        ("data", {"pairs": ("nowhere.jsonl",)}, "nowhere.jsonl"),
        ("optim", {"global_batch_size": 128}, "optim.global_batch_size (128)"),
        ("embed", {"max_tokens": 2}, "embed.max_tokens"),
        ("embed", {"scored_pairs": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("data", {"tokenizer": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_what_is_wrong_with_pairs(embedding, group, values, named):
    (problem,) = check_run(replaced(embedding, group, **values))[0]
    assert named in problem


@pytest.mark.parametrize(
    ("saved", "wanted", "problem"),
    [
        ("tokens", "embedding", ""),
        ("embedding", "embedding", ""),
        ("scalar", "embedding", "model.head (scalar there, embedding here)"),
        ("embedding", "tokens", "model.head (embedding there, tokens here)"),
        ("embedding", "scalar", "model.head (embedding there, scalar here)"),
    ],
)
def test_the_head_that_a_run_starts_from(embedding, tmp_path, saved, wanted, problem):
    saved_model(tmp_path / "other", replaced(embedding, "model", head=saved))
    config = replaced(embedding, "checkpoint", load=str(tmp_path / "other"))
    problems, _ = check_run(replaced(config, "model", head=wanted))
    assert [problem] == [line.partition(": ")[2] for line in problems] if problem else not problems


def test_slow_ranks_are_named():
    names = ["rank 0 (a)", "rank 1 (a)", "rank 2 (b)"]
    assert slow_ranks(names, [1.0, 1.1, 0.9], "work") == []
    (line,) = slow_ranks(names, [1.0, 1.1, 3.0], "work")
    assert line.startswith("rank 2 (b) is slow: work takes 3000.00 ms, 2.7 times the median")


def environment_with_a_wrong_clock(folder: str) -> tuple[list[str], list[str]]:
    from megagpt.checkpoint import current_world
    from megagpt.parallel import cpu

    cpu.enable()
    world, now = current_world(), time.time
    if world.rank == 1:
        time.time = lambda: now() + 60
    seen = Path(folder) / f"rank{world.rank}"
    seen.mkdir()
    if world.rank != 2:
        (seen / "data").write_text("tokens")
    os.chdir(seen)
    return check_environment(world, [Path("data")])


def test_environment_of_several_ranks(tmp_path):
    results = run_distributed(environment_with_a_wrong_clock, 3, str(tmp_path))
    problems, facts = results[0]
    assert all(others[0] == problems for others in results)
    assert [line for line in problems if "clock differs by +60.0 s" in line and line.startswith("rank 1 ")]
    assert [line for line in problems if re.match(r"data is 6 bytes on most ranks, but missing on rank 2 \(", line)]
    assert any("neighbours exchange" in fact for fact in facts)
    assert any("torch" in fact for fact in facts)
