"""Folders of transformers become checkpoints of megagpt and go back bit for bit, and hostile ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megagpt.checkpoint.convert import hugging_face, native
from megagpt.checkpoint.convert.convert import convert
from megagpt.config.schema import ModelConfig
from megagpt.data.chat import Message, chat_prompt, grow_for_chat
from megagpt.data.code_tokens import FIM_MIDDLE, grow_for_code
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import CheckpointError

transformers = pytest.importorskip("transformers")
SHAPE = {"vocab_size": 301, "bos_token_id": 0, "eos_token_id": 0}
LLAMA = SHAPE | {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
GPT_NEO = SHAPE | {
    "num_layers": 4,
    "hidden_size": 64,
    "num_heads": 4,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 7,
}
GPT2 = SHAPE | {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 64}


def models() -> dict[str, tuple[str, dict]]:
    return {
        "gpt2": ("GPT2", GPT2),
        "gpt2-untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 80}),
        "gpt-neo": ("GPTNeo", GPT_NEO),
        "llama": ("Llama", LLAMA),
        "llama-tied": ("Llama", LLAMA | {"tie_word_embeddings": True}),
        "qwen3": ("Qwen3", LLAMA),
    }


def saved(name: str, folder: Path, **options) -> Path:
    kind, settings = models()[name]
    torch.manual_seed(0)
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)  # biases and norms are trivial otherwise
    model.save_pretrained(folder, **options)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("name", models())
def test_round_trip_is_bit_equal(name, tmp_path):
    theirs = saved(name, tmp_path / "theirs", max_shard_size="40KB")
    there = convert(theirs, tmp_path / "ours", "megagpt")
    back = convert(tmp_path / "ours", tmp_path / "back", "huggingface")
    assert there.difference < 1e-4
    assert back.difference < 1e-4
    before, after = weights(theirs), weights(tmp_path / "back")
    if name not in ("gpt2-untied", "llama", "qwen3"):
        before.pop("lm_head.weight", None)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = convert(tmp_path / "back", tmp_path / "again", "megagpt", prove=False)
    first, second = (native.open_source(tmp_path / run, None) for run in ("ours", "again"))
    assert again.source.format == "huggingface"
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.read(key), second.read(key)) for key in first.tensors)


def test_tools_of_that_world_load_it(tmp_path):
    theirs = saved("gpt2", tmp_path / "theirs")
    (theirs / "generation_config.json").unlink()  # what it says would be kept
    values = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(values | {"bos_token_id": None, "eos_token_id": None}))
    tokenizer = grow_for_chat(grow_for_code(train_tokenizer(["to be or not to be " * 30], 263)))
    tokenizer.save(tmp_path / "theirs/tokenizer.json")
    convert(tmp_path / "theirs", tmp_path / "ours", "megagpt")
    convert(tmp_path / "ours", tmp_path / "back", "huggingface")
    text = "to be\n        or not"
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert loaded(text)["input_ids"] == tokenizer.encode(text)
    assert loaded.decode(loaded(text)["input_ids"]) == text
    talk = [Message("user", "to be?"), Message("assistant", "or not"), Message("user", "to be")]
    turns = [{"role": message.role, "content": message.content} for message in talk]
    asked = loaded.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert asked == chat_prompt(tokenizer, talk)
    assert loaded.eos_token_id == tokenizer.end_of_text_id
    assert loaded.convert_tokens_to_ids(FIM_MIDDLE) == tokenizer.special_ids[FIM_MIDDLE]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.generation_config.eos_token_id == tokenizer.end_of_text_id
    out = model.generate(**loaded(text, return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert out.shape[1] <= len(tokenizer.encode(text)) + 4


def test_gpt2_without_head_prefix_and_with_buffers(tmp_path):
    """As GPT-2 itself lies on the hub."""
    theirs = saved("gpt2", tmp_path / "theirs")
    plain = {name.removeprefix("transformer."): value for name, value in weights(theirs).items()}
    plain |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(plain, theirs / "model.safetensors", metadata={"format": "pt"})
    assert convert(theirs, tmp_path / "ours", "megagpt").difference < 1e-4


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_of_torch_save_are_read_without_running_code(shards, tmp_path):
    """As older folders have them; half precision stays as it is."""
    theirs = saved("gpt2-untied", tmp_path / "theirs")
    before = {name: value.half() for name, value in weights(theirs).items()}
    (theirs / "model.safetensors").unlink()
    names = [f"pytorch_model-{n + 1:05d}-of-{shards:05d}.bin" for n in range(shards)] if shards > 1 else []
    placed = {name: names[number % shards] for number, name in enumerate(before)} if names else {}
    for file in names:
        torch.save({name: before[name] for name in before if placed[name] == file}, theirs / file)
    if names:
        (theirs / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    else:
        torch.save(before, theirs / "pytorch_model.bin")
    convert(theirs, tmp_path / "ours", "megagpt", prove=False)
    convert(tmp_path / "ours", tmp_path / "back", "huggingface", prove=False)
    after = weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_shards_have_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr("megagpt.checkpoint.convert.safetensors_files.SHARD_BYTES", 50_000)
    saved("llama", tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", "megagpt")
    assert convert(tmp_path / "ours", tmp_path / "back", "huggingface").difference < 1e-4
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    before, after = weights(tmp_path / "theirs"), weights(tmp_path / "back")
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 2}}, "rope_type='longrope'.* the nearest is"),
        ("llama", {"attention_bias": True}, "self_attn.q_proj.bias is missing"),
        ("llama", {"hidden_act": "tanh"}, "hidden_act='tanh'; known are silu"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh'; known are gelu_new"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"model_type": "bloom"}, "model_type 'bloom'.* ALiBi .*; the nearest that is read is Pythia"),
        ("gpt2", {"model_type": "mixtral"}, "a mixture of experts.*; the nearest that is read is Mistral"),
        ("gpt2", {"model_type": "new", "num_experts": 8}, "a mixture of experts"),
        ("gpt2", {"model_type": "new"}, "model_type 'new': known are gpt2, gpt_neo, llama"),
        ("gpt2", {"quantization_config": {"quant_method": "gptq"}}, "gptq.* not quantized.* the nearest is the model"),
        ("gpt2", {"n_head": 5}, "hidden_size \\(48\\) is not a multiple of model.num_attention_heads \\(5\\)"),
        ("gpt2", {"n_layer": "many"}, "not a complete config"),
        ("gpt2", {"n_layer": 3}, "transformer.h.2.ln_1.weight is missing"),
        ("gpt2", {"n_layer": 1}, "transformer.h.1.ln_1.weight is not expected"),
        ("gpt2", {"vocab_size": 300}, "transformer.wte.weight has shape \\[301, 48\\], not \\[300, 48\\]"),
    ],
)
def test_what_megagpt_lacks_is_named(name, change, message, tmp_path):
    theirs = saved(name, tmp_path / "theirs")
    values = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(CheckpointError, match=message):
        convert(theirs, tmp_path / "ours", "megagpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def hostile(kind: str, theirs: Path) -> None:
    file, index = theirs / "model.safetensors", theirs / "model.safetensors.index.json"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if kind == "traversal":
        index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": "../../model.safetensors"}}))
    elif kind == "enormous header":
        file.write_bytes((1 << 60).to_bytes(8, "little") + content[8:])
    elif kind == "truncated":
        file.write_bytes(content[:-10])
    elif kind == "overlap":
        header = json.loads(content[8 : 8 + length])
        names = [name for name in header if name.endswith("ln_1.weight")]
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    elif kind == "integers":
        save_file({name: value.int() for name, value in load_file(file).items()}, file)
    elif kind == "link":
        shutil.move(file, theirs.parent / "elsewhere")
        file.symlink_to(theirs.parent / "elsewhere")
    elif kind == "pickle":
        file.unlink()
        torch.save({"transformer.wte.weight": torch.nn.Linear(2, 2)}, theirs / "pytorch_model.bin")
    elif kind == "misnamed":
        file.rename(theirs / "pytorch_model.bin")
    elif kind == "nothing":
        file.unlink()
    elif kind == "misplaced":
        index.write_text(json.dumps({"weight_map": {"transformer.wpe.weight": "model.safetensors"}}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("traversal", "'../../model.safetensors', which is not a safetensors file beside it"),
        ("enormous header", "is not a safetensors file"),
        ("truncated", "truncated"),
        ("overlap", "overlap or leave a gap"),
        ("integers", "not a floating-point type"),
        ("link", "symbolic link"),
        ("pickle", "pytorch_model.bin is refused: it asks for torch.nn.modules.linear.Linear"),
        ("misnamed", "pytorch_model.bin is not a zip file"),
        ("nothing", "has neither model.safetensors nor pytorch_model.bin"),
        ("misplaced", "does not place there"),
    ],
)
def test_hostile_folders_are_refused(kind, message, tmp_path):
    theirs = saved("gpt2", tmp_path / "theirs")
    hostile(kind, theirs)
    with pytest.raises(CheckpointError, match=message):
        convert(theirs, tmp_path / "ours", "megagpt")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            ModelConfig(position_embedding="rope", num_query_groups=2, attention_softcap=5.0),
            "model.attention_softcap=5",
        ),
        (ModelConfig(num_query_groups=2), "GPT2LMHeadModel lacks model.num_query_groups=2"),
        (ModelConfig(logit_softcap=30.0), "GPT2LMHeadModel lacks model.logit_softcap=30.0"),
    ],
)
def test_models_without_architecture_are_refused(model, message):
    with pytest.raises(CheckpointError, match=message):
        hugging_face.about.architecture_of(model)
