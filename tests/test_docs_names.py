"""Names in backticks on the pages exist: files, modules and what is in them, keys of the configuration."""

import dataclasses
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from megagpt.config.schema import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("", "megagpt", "tests", "kernels")
"""Where the name of a file on a page may begin."""
FILE = re.compile(r"\.(bin|idx|jsonl?|yaml|html|md|py|npy|npz|csv|txt|safetensors)$")
"""Endings of files whose names look like keys or modules, such as model.json."""


def names(page: Path) -> set[str]:
    """Every span of code in a page's prose."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)}


@cache
def file_names() -> set[str]:
    """Names of all Python files of the project, without folders."""
    folders = ("megagpt", "kernels", "tools", "tests")
    return {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")} | {"setup.py"}


@cache
def keys(kind: Any = Config, prefix: str = "") -> set[str]:
    """Dotted keys of the configuration, sections included, also those of sections that may be null."""
    found = set()
    for name, inner in get_type_hints(kind).items():
        found.add(prefix + name)
        for one in [inner, *get_args(inner)]:
            if dataclasses.is_dataclass(one) and get_origin(inner) is not tuple:
                found |= keys(one, f"{prefix}{name}.")
    return found


def missing_file(name: str) -> bool:
    """Whether a name is that of a file of the project that is not there. Capitals stand for a name of the reader's."""
    own = re.fullmatch(r"[\w./*-]+\.py", name) or re.fullmatch(
        r"(megagpt|kernels|tools|tests|slurm|configs|docs)/[\w./*-]+", name
    )
    if not own or re.search(r"[A-Z]{3}|\bmine\b", name):
        return False
    if "/" not in name and "*" not in name:
        return name not in file_names()
    return not any(path for folder in FOLDERS for path in (ROOT / folder).glob(name.rstrip("/")))


def missing_object(name: str) -> bool:
    """Whether a name is that of a module, class, function or attribute of megagpt that is not there."""
    dotted = re.fullmatch(r"(megagpt(?:\.\w+)+)(?:\(.*\))?", name)
    if not dotted or FILE.search(dotted[1]):
        return False
    parts = dotted[1].split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("megagpt"):
                pytest.skip(f"{dotted[1]} needs {error.name}")
            continue
        for part in parts[length:]:
            known = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, part) and part not in known:
                return True
            found = getattr(found, part, None)
        return False
    return True


def missing_key(name: str) -> bool:
    """Whether a name is that of a key of the configuration that is not there."""
    sections = {key.split(".")[0] for key in keys() if "." in key}
    words = name.split()
    dotted = [word.partition("=")[0] for word in words if len(words) == 1 or "=" in word]
    dotted = [key for key in dotted if re.fullmatch(r"[a-z]\w*(\.\w+)+", key) and not FILE.search(key)]
    return any(key.split(".")[0] in sections and key not in keys() for key in dotted)


@pytest.mark.parametrize("missing", [missing_file, missing_object, missing_key])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_a_page_exist(page, missing):
    assert not {name for name in names(page) if missing(name)}


@pytest.mark.parametrize(
    ("missing", "wrong", "right"),
    [
        (missing_file, "megagpt/train/trainr.py", "megagpt/train/trainer.py"),
        (missing_file, "trainr.py", "trainer.py"),
        (missing_object, "megagpt.train.trainer.Trainr", "megagpt.train.trainer.Trainer"),
        (missing_object, "megagpt.config.schema.Config.modle", "megagpt.config.schema.Config.model"),
        (missing_key, "data.fim_rates=0.5", "data.fim_rate=0.5"),
        (missing_key, "ppo.critic_parallel.engin", "ppo.critic_parallel.engine"),
    ],
)
def test_a_wrong_name_is_found(missing, wrong, right):
    assert missing(wrong)
    assert not missing(right)
