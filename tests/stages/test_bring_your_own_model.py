"""The commands of docs/bring_your_own_model.md, as they stand there, on tiny random models of two families."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from megagpt.data.tokenizer import Tokenizer
from tests.data.chat_templates import CHATML, LLAMA3
from tests.data.tokenizer_kinds import TEXTS, save
from tests.rehearsal import rehearse

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
MODELS = {
    "qwen": (transformers.Qwen2Config, {"tie_word_embeddings": True}, CHATML),
    "llama3": (
        transformers.LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        LLAMA3,
    ),
}
TOY = (
    "logging.wandb=off optim.precision=fp32 optim.lr=1e-3 optim.global_batch_size=4 optim.warmup_tokens=0"
    " optim.decay_tokens=null optim.ramp_start=null data.split=[1,0,0] stage.eval_interval=0 checkpoint.interval=0"
)
TOY_PPO = " ppo.rollout_batch_size=4 ppo.max_prompt_tokens=60 ppo.max_new_tokens=8 ppo.episodes=8"
KEPT = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")


def toy(line: str) -> str:
    """A command of the page with the sizes of a toy."""
    line += f" {TOY}" if line.startswith("megagpt train") else ""
    return line + (TOY_PPO if "stage=ppo" in line else "")


def write_data(folder: Path) -> None:
    said = ["the cat sat", "on the mat", "the dog ate it", "naïve café", "the log", "x + 1"]
    asked = [{"role": "user", "content": f"the {one}?"} for one in said]
    files = {
        "demonstrations": [{"messages": [one, {"role": "assistant", "content": "on the mat"}]} for one in asked],
        "rankings": [
            {"messages": [one], "answers": [{"content": "on", "rank": 0}, {"content": "x", "rank": 1}]} for one in asked
        ],
        "prompts": [{"messages": [one]} for one in asked],
        "text": [{"text": text} for text in TEXTS * 4],
    }
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_commands_of_the_page(name, tmp_path):
    kind, settings, template = MODELS[name]
    folder = save(name, tmp_path / "qwen", template)
    generation = (folder / "generation_config.json").read_text()
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    torch.manual_seed(0)
    config = kind(**SIZE, **settings, vocab_size=tokenizer.vocab_size + 5, initializer_range=0.3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)
    write_data(tmp_path)
    rehearse("bring_your_own_model.md", tmp_path, toy)
    back = tmp_path / "qwen_ppo"
    assert {name: (back / name).read_bytes() for name in KEPT} == {name: (folder / name).read_bytes() for name in KEPT}
    loaded = transformers.AutoTokenizer.from_pretrained(back)
    turns = [{"role": "user", "content": "the cat?"}]
    asked = loaded.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(back)
    assert set(model.generation_config.eos_token_id) == tokenizer.end_ids
    assert model.generate(**asked, max_new_tokens=4, do_sample=False).shape[1] <= asked["input_ids"].shape[1] + 4
