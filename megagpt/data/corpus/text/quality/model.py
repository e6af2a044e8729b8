"""Save and load a classifier in a folder: model.json has its method and the SHA-256 of its file."""

import json
from pathlib import Path
from typing import Any, Protocol

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.quality.fast_text import FastTextModel
from megagpt.data.corpus.text.quality.hashing import HashingModel
from megagpt.data.files import file_sha256, read_input, write_atomic
from megagpt.errors import DataError

VERSION = 1
"""Version of models. It increases when the splitting into words, their hashes or the files change."""

METHODS: dict[str, type[HashingModel] | type[FastTextModel]] = {"hashing": HashingModel, "fasttext": FastTextModel}


class Model(Protocol):
    """A classifier."""

    def score(self, analysis: Analysis) -> float:
        """The probability, 0 to 1, that a document is one of the good ones."""


def save_model(model: HashingModel | FastTextModel, folder: Path) -> None:
    """Write `model` to the existing folder `folder`; model.json is written last."""
    method = next(name for name, kind in METHODS.items() if isinstance(model, kind))
    file = model.save(folder)
    about = {"version": VERSION, "method": method, "file": file.name, "sha256": file_sha256(file)}
    write_atomic(folder / "model.json", json.dumps(about, indent=2).encode() + b"\n")


def load_model(folder: str | Path) -> Model:
    """The classifier that `megagpt data quality train` wrote to `folder`.

    Raises DataError when there is none, when its file has changed, or when it has another version.
    """
    folder = Path(folder)
    about = _read_about(folder / "model.json")
    if about["version"] != VERSION:
        raise DataError(f"{folder}: a model of version {about['version']}, not {VERSION}: train it again")
    kind = METHODS.get(about["method"])
    if kind is None or Path(about["file"]).name != about["file"]:
        raise DataError(f"{folder}/model.json names the method {about['method']!r} and the file {about['file']!r}")
    path = folder / about["file"]
    if file_sha256(path) != about["sha256"]:
        raise DataError(f"{path} is not the file that was trained (its SHA-256 is another): train it again")
    return kind.load(path)


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(read_input(path))
        return {key: about[key] for key in ("version", "method", "file", "sha256")}
    except (DataError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise DataError(f"{path.parent} holds no model of `megagpt data quality train`: {reason}") from None
