"""A config.json is read as transformers reads it, each value checked; the proof passes on nothing else of it."""

import copy
import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megagpt.checkpoint.convert import hugging_face_config as about
from megagpt.checkpoint.convert.convert import convert
from megagpt.checkpoint.convert.families import rope
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import CheckpointError
from tests.checkpoint.convert.test_hugging_face import GPT2, GPT_NEO, LLAMA

transformers = pytest.importorskip("transformers")
CONFIGS = {
    "gpt2": GPT2 | {"model_type": "gpt2"},
    "gpt_neo": GPT_NEO | {"model_type": "gpt_neo"},
    "llama": LLAMA | {"model_type": "llama"},
    "qwen3": LLAMA | {"model_type": "qwen3"},
}


def read(folder: Path, values: dict):
    (folder / "config.json").write_text(json.dumps(values))
    return about.read(folder / "config.json")


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_theta": None},
        {"rope_parameters": {"rope_theta": 3e4, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 3e4}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": {}},
    ],
    ids=str,
)
def test_the_rotary_base_is_transformers_own(rope, tmp_path, caplog):
    """Llama 2 has none: 10000. With two, the one that transformers takes, and a warning that names both."""
    _, model, _ = read(tmp_path, CONFIGS["llama"] | rope)
    given = copy.deepcopy({key: value for key, value in rope.items() if value is not None})  # it writes into them
    assert model.rope_base == transformers.LlamaConfig(**LLAMA, **given).rope_parameters["rope_theta"]
    both = len(rope) == 2 and "rope_theta" in rope["rope_parameters"]
    assert ("rope_theta is 500000.0 and rope_parameters.rope_theta is 30000.0" in caplog.text) == both


@pytest.mark.parametrize("kind", CONFIGS)
def test_defaults_are_transformers_own(kind, tmp_path):
    """A key that is left out means what transformers makes of it."""
    needed = {
        "gpt2": ("n_layer", "n_embd", "n_head"),
        "gpt_neo": ("num_layers", "hidden_size", "num_heads", "max_position_embeddings", "attention_types"),
    }.get(kind, ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"))
    values = {key: CONFIGS[kind][key] for key in (*needed, "vocab_size", "model_type")}
    if kind == "qwen3":
        values |= {"hidden_size": 4096, "num_attention_heads": 32}  # its heads are 128 wide unless they say otherwise
    name, model, _ = read(tmp_path, values)
    theirs = getattr(transformers, name).config_class(**{key: values[key] for key in values if key != "model_type"})
    for key in ("max_position_embeddings", "tie_word_embeddings", "initializer_range"):
        ours = {"max": model.sequence_length, "tie": model.tie_embeddings, "ini": model.init_std}[key[:3]]
        assert ours == getattr(theirs, key), key
    epsilon = getattr(theirs, "rms_norm_eps", None) or theirs.layer_norm_epsilon
    assert model.norm_epsilon == epsilon
    assert model.query_groups == getattr(theirs, "num_key_value_heads", model.num_attention_heads)


WRONG = [
    *[("gpt2", "n_layer", value) for value in (0, -2, 1.0, "2", True, [2], {}, float("nan"), 10**9, 10**50)],
    *[("gpt2", "n_head", value) for value in (0, -4, 5, None)],
    *[("gpt2", "n_embd", value) for value in (float("inf"), [], 10**30)],
    *[("gpt2", "n_inner", value) for value in (64.0, "64", -1)],
    *[("gpt2", "layer_norm_epsilon", value) for value in ("small", float("inf"), 0, -1.0, [1])],
    *[("gpt2", "tie_word_embeddings", value) for value in ("false", 1, [])],
    *[("gpt2", "activation_function", value) for value in (["gelu_new"], {"a": 1}, 7)],
    *[("gpt2", "model_type", value) for value in ([], {}, None, 5, "../../x")],
    *[("gpt2", "resid_pdrop", value) for value in (1.0, -0.1)],
    *[
        ("gpt_neo", "attention_types", value)
        for value in ([], "x", [["global", 4]], [[["global"], 10**9]], [[["x"], 4]])
    ],
    *[("gpt_neo", "attention_types", value) for value in ([[["global"], -1]], [[["global"] * 3, 1]], [[[[]], 4]])],
    *[("llama", "num_key_value_heads", value) for value in (5, 0, -1, "2")],
    *[
        ("llama", "rope_parameters", value)
        for value in ([], "x", {"rope_type": "yarn"}, {"factor": 2}, {"rope_theta": 0}, {"rope_type": "longrope"})
    ],
    *[("llama", "head_dim", value) for value in (7, 0)],
    *[("llama", "partial_rotary_factor", value) for value in (0.5, "1")],
    *[("qwen3", "layer_types", value) for value in (["sliding_attention"] * 3, ["full_attention"], [[]])],
    ("gpt2", "quantization_config", {"quant_method": "evil"}),
]


@pytest.mark.parametrize(("kind", "key", "value"), WRONG, ids=lambda value: f"{value!s:.40}")
def test_wrong_values_are_named(kind, key, value, tmp_path):
    name = {"n_head": "head", "resid_pdrop": "hidden_dropout", "layer_norm_epsilon": "epsilon"}.get(key, key)
    alias = {"num_key_value_heads": "num_key_value_heads|num_query_groups", "n_embd": "n_embd|hidden_size|parameters"}
    alias |= {"n_layer": "n_layer|num_layers", "rope_parameters": "rope_", "head_dim": "head_dim|head size"}
    with pytest.raises(CheckpointError, match=f"config.json.*({alias.get(key, name)})"):
        read(tmp_path, CONFIGS[kind] | {key: value})


def test_a_key_that_is_there_twice_and_keys_that_nothing_was_made_of(tmp_path, caplog):
    text = json.dumps(CONFIGS["gpt2"])
    (tmp_path / "config.json").write_text(text[:-1] + ', "n_layer": 3}')
    with pytest.raises(CheckpointError, match="a key is there twice"):
        about.read(tmp_path / "config.json")
    read(tmp_path, CONFIGS["gpt2"] | {"auto_map": {"AutoModel": "evil--x"}, "use_cache": "x"})
    assert "(auto_map). It is not run: the model is read as GPT2LMHeadModel" in caplog.text
    assert "nothing was made of" not in caplog.text
    read(tmp_path, CONFIGS["gpt2"] | {"power": 3})
    assert "nothing was made of 'power'" in caplog.text


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Llama with its default weights, whose attention hardly matters."""
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def edit(folder: Path, **changes) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def test_a_hostile_config_reaches_no_library(folder, monkeypatch):
    """Nothing is looked for on the network, and the conversion is proven all the same."""

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    edit(
        folder,
        attn_implementation="evil-org/evil-kernel",
        _attn_implementation="evil-org/evil-kernel",
        auto_map={"AutoConfig": "evil-org/evil--code.Config", "AutoModelForCausalLM": "evil-org/evil--code.Model"},
        use_cache="x",
        torch_dtype="nonsense",
        dtype=["float99"],
        trust_remote_code=True,
        _name_or_path="evil-org/evil",
    )
    (folder / "generation_config.json").write_text('{"custom_generate": "evil-org/evil", "auto_map": {"a": "b"}}')
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    assert convert(folder, folder.parent / "ours", "megagpt").difference < 1e-4
    kept = (folder.parent / "ours/huggingface.json").read_text()
    assert "evil" not in kept


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_small_weights_hide_no_error(folder, scale, monkeypatch):
    """With another rotary base logits differ by less than a thousandth; with tiny weights, by nothing at all."""
    file = folder / "model.safetensors"
    save_file({name: value * (scale if value.dim() > 1 else 1) for name, value in load_file(file).items()}, file)
    read = rope.read
    monkeypatch.setattr(rope, "read", lambda config, **options: read(config, **options) | {"rope_base": 500.0})
    with pytest.raises(CheckpointError, match=r"the logits of .* differ by .* of their spread, more than 0.001"):
        convert(folder, folder.parent / "ours", "megagpt")


def test_equal_logits_prove_nothing(folder):
    file = folder / "model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"all logits .* are equal, so that nothing can be proven"):
        convert(folder, folder.parent / "ours", "megagpt")


def test_a_tied_head_that_differs_is_named(folder):
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"ties lm_head.weight to .*embed_tokens.weight .*tie_word_embeddings"):
        convert(folder, folder.parent / "ours", "megagpt")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    convert(folder, folder.parent / "ours", "megagpt", prove=False)


def test_a_folder_of_the_hub_s_cache(folder, tmp_path):
    """All of its files are links into the cache's own store."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert convert(snapshot, tmp_path / "ours", "megagpt", prove=False).source.model.name == "0123"
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a symbolic link to .*out of its folder"):
        convert(snapshot, tmp_path / "again", "megagpt", prove=False)


# ---- what lies beside the weights -------------------------------------------------------------------------------


def test_tokenizers_are_checked_before_the_work(folder):
    own = train_tokenizer(["to be or not to be " * 30], 290)
    wide = train_tokenizer([" ".join(f"{n:x}{n * n}" for n in range(3000))], 310)
    spec = json.loads(own.to_json())
    spec["added_tokens"][0]["content"] = "<|other|>"
    endless = json.dumps(spec)
    sentencepiece = json.dumps(json.loads(own.to_json()) | {"decoder": {"type": "Metaspace", "replacement": "_"}})
    cases = [
        ("tokenizer.json", endless, r"has no <\|endoftext\|> token"),
        ("tokenizer.json", sentencepiece, "has no byte fallback"),
        ("tokenizer.json", "{}", "is not a byte-level BPE"),
        ("tokenizer.json", wide.to_json(), f"has {wide.vocab_size} tokens, the model 301"),
        ("tokenizer.model", "anything", "is a SentencePiece model"),
    ]
    for name, text, message in cases:
        (folder / name).write_text(text)
        with pytest.raises(CheckpointError, match=f"{message}.*(?i:to convert the weights alone, move it)"):
            convert(folder, folder.parent / "ours", "megagpt", prove=False)
        (folder / name).unlink()
    assert [path.name for path in folder.parent.iterdir()] == ["theirs"]


def test_what_lies_beside_the_weights_comes_back(folder, caplog):
    tokenizer = train_tokenizer(["to be or not to be " * 30], 290)
    tokenizer.save(folder / "tokenizer.json")
    beside = {
        "generation_config.json": {"do_sample": True, "temperature": 0.6, "eos_token_id": [4, 5], "max_length": 99},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "b", "pad_token": "c"},
        "special_tokens_map.json": {"eos_token": {"content": "b", "lstrip": False}},
    }
    for name, values in beside.items():
        (folder / name).write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}ü")
    edit(folder, eos_token_id=[4, 5], pad_token_id=6, bos_token_id=...)
    convert(folder, folder.parent / "ours", "megagpt", prove=False)
    convert(folder.parent / "ours", folder.parent / "back", "huggingface", prove=False)
    back = folder.parent / "back"
    assert {name: json.loads((back / name).read_text()) for name in beside} == beside
    loaded = transformers.AutoTokenizer.from_pretrained(back)
    assert (loaded.eos_token, loaded.pad_token) == ("b", "c")
    assert loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "xü"
    config = json.loads((back / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == ([4, 5], 6)
    # Another tokenizer since, as after training: what described the old one is not passed off as the new one's.
    train_tokenizer(["to be or not " * 30], 280).save(folder.parent / "ours/tokenizer.json")
    convert(folder.parent / "ours", folder.parent / "again", "huggingface", prove=False)
    assert "are of another tokenizer" in caplog.text
    again = json.loads((folder.parent / "again/tokenizer_config.json").read_text())
    assert again["eos_token"] == "<|endoftext|>" and not (folder.parent / "again/chat_template.jinja").exists()
    generation = json.loads((folder.parent / "again/generation_config.json").read_text())
    ended = {
        "eos_token_id": transformers.AutoTokenizer.from_pretrained(folder.parent / "again").convert_tokens_to_ids(
            "<|endoftext|>"
        )
    }
    assert generation == beside["generation_config.json"] | ended
    assert json.loads((folder.parent / "again/config.json").read_text()).items() >= ended.items()
