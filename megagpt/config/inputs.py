"""The files and run folders that a run reads, and the command that makes each.

`check_inputs` runs before any model is built, so that missing files are reported within a second and all at once.
"""

import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from megagpt.config.groups import CONFIG_DIR
from megagpt.config.schema import Config
from megagpt.errors import CheckpointError, DataError

TEXT = "TEXT.jsonl"
"""Placeholder for the user's own text in commands."""

_INSTRUCTIONS = "megagpt data instructions --output-dir data"

COMMANDS = {
    "data/tokenizer.json": f"megagpt data tokenizer --vocab-size 50257 --output data/tokenizer.json {TEXT}",
    "data/chat_tokenizer.json": (
        "megagpt data tokenizer --extend data/tokenizer.json --add chat --output data/chat_tokenizer.json"
    ),
    "data/code_tokenizer.json": "megagpt data tokenizer --extend data/tokenizer.json --output data/code_tokenizer.json",
    "data/code_chat_tokenizer.json": (
        "megagpt data tokenizer --extend data/code_tokenizer.json --add chat --output data/code_chat_tokenizer.json"
    ),
    "data/conversations.jsonl": _INSTRUCTIONS,
    "data/rankings.jsonl": _INSTRUCTIONS,
    "data/prompts.jsonl": _INSTRUCTIONS,
    "data/text_pairs.jsonl": f"megagpt data pairs --kind neighbours --output data/text_pairs.jsonl {TEXT}",
    "data/code_pairs.jsonl": "megagpt data pairs --kind code --output data/code_pairs.jsonl CODE.jsonl",
    "data/similarity_pairs.jsonl": "megagpt data pairs --kind labelled --output data/similarity_pairs.jsonl NLI.jsonl",
    "data/search_pairs.jsonl": "megagpt data pairs --kind labelled --output data/search_pairs.jsonl SEARCH.jsonl",
    "data/code_search_pairs.jsonl": (
        "megagpt data pairs --kind labelled --output data/code_search_pairs.jsonl CODE_SEARCH.jsonl"
    ),
    "data/edits.jsonl": "megagpt data edits --count 200000 --output data/edits.jsonl",
}
"""{file named in a recipe: the command that makes it}."""

DEMOS = {
    "runs/demo/data": "make train",
    "runs/code/data": "make code",
    "runs/chatgpt/data": "make chatgpt",
    "runs/demo_125m/data": "make train DEVICE=cuda",
    "runs/demo_code_125m/data": "make code DEVICE=cuda",
    "runs/demo_chatgpt_125m/data": "make chatgpt DEVICE=cuda",
    "runs/incontext/data": "make incontext",
}
"""{folder of a demo's data: the command that fills it, in a checkout of megagpt}."""

GPT3_CORPORA = ("data/common_crawl", "data/webtext2", "data/books1", "data/books2", "data/wikipedia")
"""Corpora of GPT-3's mixture. The paper's own corpora are not public."""


@dataclass(frozen=True)
class Input:
    """A file, corpus or run folder that a run reads."""

    field: str
    """The key that names it."""
    path: str
    kind: Literal["tokenizer", "corpus", "file", "run"]

    @property
    def exists(self) -> bool:
        """Whether the path exists. A corpus exists when its .json file does, because that file is written last."""
        return Path(f"{self.path}.json" if self.kind == "corpus" else self.path).exists()


def inputs(config: Config) -> list[Input]:
    """Everything that the run's stage reads.

    A run with checkpoints of its own does not need checkpoint.load, except in stage ppo, whose reference model is
    loaded from it at every start.
    """
    data, stage, ppo, name = config.data, config.stage, config.ppo, config.stage.name
    found = [Input("data.tokenizer", data.tokenizer, "tokenizer")]
    if name not in ("edit", "sft", "reward", "embed"):
        found += [Input("data.corpora", corpus.path, "corpus") for corpus in data.corpora]
    if name in ("edit", "sft", "reward", "ppo"):
        found += [Input("data.conversations", path, "file") for path in data.conversations]
    if name == "reward":
        found += [Input("data.rankings", path, "file") for path in data.rankings]
    if name == "embed":
        found += [Input("data.pairs", path, "file") for path in data.pairs]
    begun = any(Path(config.run_dir, "checkpoints").glob("step_*"))
    scored = config.embed.scored_pairs if name == "embed" else None
    optional = [
        Input("embed.scored_pairs", scored, "file") if scored else None,
        Input("stage.held_out_edits", stage.held_out_edits, "file") if stage.held_out_edits else None,
        Input("checkpoint.load", config.checkpoint.load, "run")
        if config.checkpoint.load and (name == "ppo" or not begun)
        else None,
        Input("stage.reward_model", stage.reward_model, "run") if stage.reward_model else None,
    ]
    if name == "ppo":
        optional += [
            Input("ppo.reward_model", ppo.reward_model, "run") if ppo.reward == "model" and ppo.reward_model else None,
            Input("ppo.critic", ppo.critic, "run") if ppo.critic and not begun else None,
        ]
    return [*found, *filter(None, optional)]


def check_inputs(config: Config) -> None:
    """Check that all inputs of the run exist.

    Raises CheckpointError when only run folders are missing, else DataError; the message lists the commands that make
    the missing inputs.
    """
    wanted = inputs(config)
    missing = [found for found in wanted if not found.exists]
    if not missing:
        return
    lines = [f"{len(missing)} of the {len(wanted)} inputs of the run are missing"]
    corpora = [found for found in missing if found.kind == "corpus"]
    for found in missing:
        if found.kind != "corpus" or len(corpora) == 1:
            lines.append(f"  {found.field}: no {found.path}; {advice(found, config)}")
    lines += _several_corpora(config, [found.path for found in corpora]) if len(corpora) > 1 else []
    error = CheckpointError if all(found.kind == "run" for found in missing) else DataError
    raise error("\n".join(lines))


def advice(missing: Input, config: Config) -> str:
    """A sentence that says how to make a missing input."""
    if known := how_to_make(missing.path):
        return known
    if missing.kind == "tokenizer":
        size = config.model.vocab_size
        return f"make it with `megagpt data tokenizer --vocab-size {size} --output {shlex.quote(missing.path)} {TEXT}`"
    if missing.kind == "corpus":
        return f"make it with `{_preprocess(config, missing.path)}`"
    if missing.field == "data.pairs":
        return "give a file of pairs, or make one with `megagpt data pairs`; see its --help"
    if missing.field == "embed.scored_pairs":
        return "give a file of sentence pairs with scores, or make one with `megagpt data pairs --kind scored`"
    if missing.kind == "run":
        return "give the run folder or checkpoint of a run"
    return "give a file of yours, or try the stage with those of `megagpt data instructions --output-dir DIR`"


def how_to_make(path: str | Path) -> str:
    """The advice for a file or run folder that a recipe names; "" for any other path."""
    path = Path(path)
    for folder, command in DEMOS.items():
        if path.is_relative_to(folder):
            return f"make it with `{command}` in a checkout of megagpt"
    if command := COMMANDS.get(path.as_posix()):
        own = "" if path.stem.endswith("tokenizer") else "put your own there, or "
        return f"{own}make it with `{command}`"
    recipe = _recipes().get(path.name)
    return f"make it with `megagpt train experiment={recipe}`" if recipe and path.parent.name == "runs" else ""


def _several_corpora(config: Config, missing: list[str]) -> list[str]:
    """Every missing corpus of a mixture with its weight and command, and how to train on a single one."""
    of_gpt3 = " (GPT-3's own are not public)" if set(missing) & set(GPT3_CORPORA) else ""
    lines = [
        f"  data.corpora: {len(missing)} of {len(config.data.corpora)} corpora are missing{of_gpt3}; make each from"
        " text of your own:"
    ]
    for corpus in config.data.corpora:
        if corpus.path in missing:
            lines.append(f"    weight {corpus.weight:.2f}: `{_preprocess(config, corpus.path)}`")
    lines.append("    or train on one corpus, 'data.corpora=[{path:data/web}]':")
    lines.append(f"    `{_preprocess(config, 'data/web')}`")
    return lines


def _preprocess(config: Config, prefix: str) -> str:
    """The command that tokenizes a corpus."""
    paths = f"--tokenizer {shlex.quote(config.data.tokenizer)} --output {shlex.quote(prefix)}"
    return f"megagpt data preprocess {paths} {TEXT}"


@cache
def _recipes() -> dict[str, str]:
    """{run name: the experiment that uses it}."""
    files = (CONFIG_DIR / "experiment").glob("*.yaml")
    return {yaml.safe_load(file.read_text(encoding="utf-8"))["run_name"]: file.stem for file in files}
