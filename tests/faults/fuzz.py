"""Damaged and hostile files of every format that is read: each ends in a named error, or in the tensors meant.

    python -m tests.faults.fuzz FOLDER COUNT [FORMAT ...]

makes a small checkpoint of each format, breaks copies of it in COUNT ways that a fixed seed draws, reads each as
convert and inspect do, and prints what became of them as JSON. It limits its memory and the time of each file.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.convert.common import LazySource, parameters
from megagpt.checkpoint.convert.convert import FORMATS, convert, detect, opened
from megagpt.checkpoint.format import dump_manifest
from megagpt.checkpoint.inspect import inspect
from megagpt.cli.checkpoint.inspect import as_text
from megagpt.config.embedding import EmbedConfig
from megagpt.config.schema import ModelConfig
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import MegaGPTError
from tests.memory import peak_growth

SECONDS, MEMORY = 10, 1 << 30
"""Processor time of one file, and memory beyond what the process had at the start, in bytes."""
MODEL = ModelConfig(num_layers=2, hidden_size=16, num_attention_heads=2, sequence_length=8, vocab_size=300)
TOKENIZER = "tokenizer"
NAMES = (*FORMATS, TOKENIZER)
UNREAD = {"README.md", "query", "1_Pooling", "sentence_bert_config.json"}
"""Files and folders of sentence-transformers that nothing of ours reads: to break them would test nothing."""


class Hang(BaseException):
    """A file took longer than `SECONDS`."""


def make(name: str, folder: Path, tokenizer: Path) -> None:
    """Writes a small checkpoint of a format."""
    embedding = name == "sentence-transformers"
    model = dataclasses.replace(MODEL, head="embedding") if embedding else MODEL
    draw = torch.Generator().manual_seed(0)
    tensors = {f"model/{key}": torch.randn(shape, generator=draw) for key, shape in parameters(model).items()}
    tensors["model/embedding.word_embeddings.weight"][model.vocab_size :] = 0
    if FORMATS[name].carries_optimizer:
        kinds = ("exp_avg", "exp_avg_sq")
        tensors |= {
            f"optimizer/{kind}/{key[6:]}": torch.rand(value.shape) for kind in kinds for key, value in tensors.items()
        }
    infos = {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in tensors.items()}
    readers = {key: lambda value=value: value for key, value in tensors.items()}
    source = LazySource(Path("memory"), "memory", model, 7, infos, readers, tokenizer, EmbedConfig(max_tokens=8))
    folder.mkdir(parents=True)
    FORMATS[name].write(source, folder, tqdm(disable=True))


# Breaking


NASTY: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 10**9, 2**63, 10**40, 0.5, -0.0, float("inf"), float("nan"), ""]
NASTY += ["x" * 5000, "../../x", "a/b", "\ud800", [], {}, [[]] * 3, [1] * 100, {"a": {"b": []}}, [10**9] * 4]


def nasty(draw: random.Random) -> Any:
    """A value that nobody expects, deep ones among them."""
    value = draw.choice(NASTY)
    if draw.random() < 0.1:
        for _ in range(draw.choice([50, 300, 900])):
            value = draw.choice([[value], {"a": value}]) if draw.random() < 0.5 else [value]
    return value


def damage(data: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut, zeroed, repeated or left out."""
    start = draw.randrange(len(data) + 1)
    stop = min(len(data), start + draw.choice([1, 2, 4, 8, 64, 1000]))
    kind = draw.randrange(7)
    if kind <= 2:
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            if data:
                changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 3:
        return data[:start]
    if kind == 4:
        return data[:start] + draw.choice([b"\0", b"\xff"]) * (stop - start) + data[stop:]
    return data[:start] + data[start:stop] * 2 * (kind == 5) + data[stop:]


def places(value: Any) -> Iterator[tuple[Callable[[Any], None], Any]]:
    """A setter and the value of every place within a value that can hold another one."""
    waiting, seen = [value], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, torch.Tensor | torch.dtype | type):
            continue
        seen.add(id(found))
        held = found if isinstance(found, dict | list) else getattr(found, "__dict__", {})
        for key in list(held) if isinstance(held, dict) else range(len(held)):
            yield lambda new, held=held, key=key: held.__setitem__(key, new), held[key]
            waiting.append(held[key])


def rearrange(value: Any, draw: random.Random) -> Any:
    """Puts something else into one to three places: a nasty value, or another part, which may hold the place itself."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = list(places(value))
        if not found:
            return nasty(draw)
        put, _ = draw.choice(found)
        put(
            draw.choice(found)[1]
            if draw.random() < 0.25
            else draw.choice([value, nasty(draw)] if draw.random() < 0.1 else [nasty(draw)])
        )
    return value


def rewritten(file: Path, draw: random.Random) -> bool:
    """Rearranges what a file holds and writes it as its writer would, checksums included; False for an unknown kind."""
    data = file.read_bytes()
    try:
        if file.suffix == ".json":
            file.write_text(json.dumps(rearrange(json.loads(data), draw)))
        elif file.suffix == ".safetensors":
            size = int.from_bytes(data[:8], "little")
            text = json.dumps(rearrange(json.loads(data[8 : 8 + size]), draw)).encode()
            file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
        elif file.suffix in (".pt", ".distcp"):
            torch.save(rearrange(torch.load(file, weights_only=False), draw), file)
        elif file.name == ".metadata":
            file.write_bytes(pickle.dumps(rearrange(pickle.loads(data), draw)))
        else:
            return False
    except (RuntimeError, ValueError, TypeError, AttributeError):  # what cannot be written is not to be read
        file.write_bytes(data)
        return False
    return True


def replaced(file: Path, folder: Path, draw: random.Random) -> str:
    """Puts something that is no file in the place of one, or of its folder, or the file in another's place."""
    kind = draw.randrange(7)
    target = file if kind else file.parent
    if target == folder:
        target = file
    away = folder.parent / "away"
    if kind == 6:
        others = [other for other in sorted(folder.rglob("*")) if other.is_file() and other != file]
        other = draw.choice([*others, folder / "other"])
        data = other.read_bytes() if other.exists() else b""
        shutil.copyfile(file, other)
        file.write_bytes(data)
        return "exchanged"
    target.rename(away)
    if kind in (0, 1):
        target.symlink_to(away)
    elif kind == 2:
        os.mkfifo(target)
    elif kind == 3:
        target.symlink_to(folder / "nothing")
    elif kind == 4:
        target.mkdir()
    elif kind == 5 and draw.random() < 0.5:
        target.symlink_to("/dev/zero")
    return "replaced"


def forge(folder: Path) -> None:
    """Makes the sizes and hashes of a manifest of ours agree with the files."""
    for file in folder.rglob("manifest.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            manifest = json.loads(file.read_bytes())
            manifest.pop("digest", None)
            for name, info in manifest["files"].items():
                data = (file.parent / name).read_bytes()
                info.update(size=len(data), sha256=sha256(data).hexdigest())
            file.write_text(dump_manifest(manifest))


def broken(folder: Path, draw: random.Random) -> str:
    """Breaks a checkpoint in one way, and says in which: `forged` has right checksums, and may hold anything.

    In formats of others a file that was `exchanged` has them too: nothing in it says where it belongs.
    """
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    file = folder / draw.choice(sorted(file for file in files if UNREAD.isdisjoint(file.parts)))
    way = draw.random()
    if way < 0.5 and rewritten(file, draw):
        forge(folder)
        return "forged"
    if way < 0.6:
        return replaced(file, folder, draw)
    file.write_bytes(damage(file.read_bytes(), draw))
    return "damaged"


# Reading


def tensors_of(folder: Path) -> dict[str, str]:
    """What convert reads of a folder: SHA-256 of every tensor, its shape and dtype included."""
    found = detect(folder, list(FORMATS.values()))
    if found is None:
        return {}
    source = opened(found, folder, None)
    hashes = {}
    for name in source.tensors:
        tensor = source.read(name)
        about = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
        hashes[name] = sha256(about + tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    return hashes


def read(name: str, folder: Path, number: int) -> dict[str, str]:
    """Reads a folder in all ways; returns the tensors' hashes. Raises MegaGPTError."""
    if name == TOKENIZER:
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        text = "to be or not, \u00fc\U0001f600"
        assert len(tokenizer.token_bytes) == tokenizer.vocab_size and isinstance(
            tokenizer.decode(tokenizer.encode(text)), str
        )
        return {}
    found = tensors_of(folder)
    facts = inspect(folder, verified=False, norms=True)
    as_text(facts), json.dumps(facts)
    if number % 5 == 0 and name != "sentence-transformers":
        convert(folder, folder.parent / "target", "megagpt", prove=False)
    return found


def same_as_safetensors(folder: Path) -> bool:
    """Whether a folder's tensors are what the library of safetensors reads; the format has no checksums."""
    from safetensors.torch import load_file

    from megagpt.checkpoint.convert.safetensors_files import open_folder

    side = folder / "document" if (folder / "document").is_dir() else folder
    theirs = {key: value for file in side.glob("*.safetensors") for key, value in load_file(file).items()}
    ours = {key: stored.read() for key, stored in open_folder(side).items()}
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key].flatten().view(torch.uint8), theirs[key].flatten().view(torch.uint8)) for key in ours
    )


def tried(name: str, folder: Path, number: int, way: str, whole: dict[str, str]) -> tuple[str, str]:
    """What became of a broken folder, and the details of what should not have."""
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)  # for what waits: other programs may share the processor
    try:
        found = read(name, folder, number)
        if found == whole:
            return "unchanged", ""
        if way == "forged" or (way == "exchanged" and name != "megagpt"):
            return way, ""
        if name in ("huggingface", "sentence-transformers") and same_as_safetensors(folder):
            return "without checksum", ""
        return "WRONG", str(sorted(key for key in whole if found.get(key) != whole[key]))
    except MegaGPTError as error:
        return ("refused", "") if 10 < len(str(error)) < 5000 else ("UNNAMED", str(error)[:300])
    except Hang:
        return "HANG", traceback.format_exc()
    except BaseException:
        return "TRACEBACK", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(name: str, folder: Path, count: int) -> dict[str, Any]:
    """Breaks and reads a format `count` times: how often it ended how, what should not have been, the slowest file."""
    good, bad, counts, wrong, slowest = folder / "good", folder / "try" / "bad", Counter(), [], 0.0
    folder.mkdir(parents=True)
    tokenizer = folder / "tokenizer.json"
    train_tokenizer(["to be or not to be " * 30], 300).save(tokenizer)
    if name == TOKENIZER:
        good.mkdir()
        shutil.copy(tokenizer, good)
    else:
        make(name, good, tokenizer)
    whole = read(name, good, 1)
    for number in range(count):
        draw = random.Random(f"{name} {number}")
        shutil.rmtree(bad.parent, ignore_errors=True)
        shutil.copytree(good, bad)
        way = broken(bad, draw)
        start = time.process_time()
        outcome, details = tried(name, bad, number, way, whole)
        slowest = max(slowest, time.process_time() - start)
        counts[outcome] += 1
        if outcome.isupper():
            wrong.append(f"{name} {number} ({way}): {outcome}\n{details}")
    return {"counts": dict(counts), "wrong": wrong, "slowest": round(slowest, 2)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("formats", nargs="*", default=NAMES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def hang(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGVTALRM, hang)
    signal.signal(signal.SIGALRM, hang)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * MEMORY, virtual + 2 * MEMORY))
    found = {}

    def fuzz_all() -> None:
        found.update({name: fuzz(name, arguments.folder / name, arguments.count) for name in arguments.formats})

    grown = peak_growth(fuzz_all)
    json.dump({"formats": found, "grown": grown}, sys.stdout)


if __name__ == "__main__":
    main()
