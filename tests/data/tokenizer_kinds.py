"""Tiny tokenizers of the kinds that published models have, trained here, in folders as transformers has them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "the cat sat on the mat, and the dog sat on the log; it's 12 o'clock, and 3.14159 is pi.\n",
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\n",
    "naïve café, 中文字, 한국어. The user asked: what do you think? I think that it is fine.\n",
] * 4
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(
    pattern: str | None, special: list[str], normalizer: Any = None, ordinary: tuple[str, ...] = ()
) -> Tokenizer:
    """Byte-level BPE; with GPT-2's pattern for None."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pattern is not None))
    tokenizer.normalizer = normalizer
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), split]) if pattern else split
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ordinary])
    return tokenizer


def sentencepiece(kind: str, special: list[str], ordinary: tuple[str, ...] = (), space: str = "always") -> Tokenizer:
    """SentencePiece's BPE or unigram with byte fallback; space before a text: "legacy", "always", "first", "never"."""
    pieces = [*special[:3], *_BYTES]
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        learnt = json.loads(tokenizer.to_str())["model"]["vocab"][1:]
        vocab = [(piece, 0.0) for piece in pieces] + [tuple(pair) for pair in learnt]
        tokenizer = Tokenizer(models.Unigram(vocab, pieces.index("<unk>"), True))
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=pieces, show_progress=False)
        tokenizer.train_from_iterator(TEXTS, trainer)
        spec = json.loads(tokenizer.to_str())  # the bytes are pieces of the model, and not special
        spec["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    replace = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [] if space == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(replace + strip)
    if space in ("legacy", "never"):
        start = [normalizers.Prepend("▁")] if space == "legacy" else []
        tokenizer.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space, split=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ordinary])
    return tokenizer


def starts_with(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """With a post-processor that puts bos before every text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PHI = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def made(kind: str) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    """A tokenizer, its tokenizer_config.json and its generation_config.json."""
    if kind == "llama3":
        tokenizer = starts_with(byte_level(_LLAMA3, LLAMA3), "<|begin_of_text|>")
        ends = [tokenizer.token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>")]
        config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    elif kind == "qwen":
        pattern = _LLAMA3.replace("{1,3}", "")
        more = ("<tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
        tokenizer = byte_level(pattern, QWEN, normalizers.NFC(), more)
        ends = [tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
        config = {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    elif kind == "neox":
        tokenizer = byte_level(None, ["<|endoftext|>", "<|padding|>"], normalizers.NFC(), ("  ", "    "))
        ends, config = (
            tokenizer.token_to_id("<|endoftext|>"),
            {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        )
    elif kind == "phi":
        tokenizer = byte_level(None, PHI)
        ends = [tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|end|>", "<|assistant|>")]
        config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    elif kind == "gemma":
        special = ["<pad>", "<eos>", "<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
        tokenizer = starts_with(sentencepiece("bpe", special, ("\n\n", "▁▁"), "never"), "<bos>")
        ends = [tokenizer.token_to_id(name) for name in ("<eos>", "<end_of_turn>")]
        config = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    else:
        space = {"llama2": "legacy", "mistral": "first", "unigram": "always"}[kind]
        special = ["<unk>", "<s>", "</s>", *(["[INST]", "[/INST]"] if kind == "mistral" else [])]
        tokenizer = starts_with(sentencepiece("unigram" if kind == "unigram" else "bpe", special, (), space), "<s>")
        ends = tokenizer.token_to_id("</s>")
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    return tokenizer, config, {"eos_token_id": ends, "temperature": 0.6}


KINDS = ("llama3", "qwen", "neox", "phi", "gemma", "llama2", "mistral", "unigram")


def save(kind: str, folder: Path, template: str | None = None) -> Path:
    """Write the files of a tokenizer, with a chat template if one is given; returns the folder."""
    tokenizer, config, generation = made(kind)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        config |= {"chat_template": template}
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: config[name] for name in names if config.get(name)}
    for name, values in (("tokenizer", config), ("generation", generation)):
        (folder / f"{name}_config.json").write_text(json.dumps(values, indent=1, sort_keys=True))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder
