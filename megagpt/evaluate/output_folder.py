"""The output folder of an evaluation, from which an interrupted evaluation continues.

It holds request.json (all settings that the results depend on) and, at the end, result.json.
"""

import json
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from megagpt.data.files import file_sha256, write_atomic
from megagpt.errors import ConfigError
from megagpt.evaluate.settings import EmbeddingEvaluation, GenerationEvaluation
from megagpt.train.metrics import read_jsonl


def request_of(settings: GenerationEvaluation, size: dict[str, int], **more: Any) -> dict[str, Any]:
    """All settings that the results depend on; results of equal requests are comparable.

    size: {unit: number of records}. more: settings of this kind of evaluation only.
    """
    file = settings.completions
    return {
        "task": settings.task,
        "data": {"file": settings.data.name, "sha256": file_sha256(settings.data)} | size,
        "checkpoint": checkpoint_of(settings.checkpoint),
        "completions": file and {"file": file.name, "sha256": file_sha256(file)},
        "sandbox": settings.sandbox,
        "limits": asdict(settings.limits),
    } | more


def embedding_request(
    settings: EmbeddingEvaluation, files: Sequence[Path], size: dict[str, int], **more: Any
) -> dict[str, Any]:
    """Like `request_of`, for an evaluation of embeddings, which may have several `files`."""
    peer = settings.sentence_transformer
    # A name that is not a folder is a model of the Hugging Face hub, whose files are in that library's cache.
    parts = sorted(path for path in Path(peer).rglob("*") if path.is_file()) if peer else []
    return {
        "task": settings.task,
        "data": {"files": {file.name: file_sha256(file) for file in files}} | size,
        "checkpoint": checkpoint_of(settings.checkpoint),
        "sentence_transformer": peer
        and {"name": peer, "sha256": {str(part.relative_to(peer)): file_sha256(part) for part in parts}},
        "dimensions": settings.dimensions,
    } | more


def checkpoint_of(folder: Path | None) -> dict[str, str] | None:
    """A checkpoint as a request names it: its folder, and the hash of its manifest."""
    return folder and {"folder": str(folder), "manifest_sha256": file_sha256(folder / "manifest.json")}


def claim(folder: Path, request: dict[str, Any]) -> None:
    """Write request.json, or check that it has the same request. Raises ConfigError when the request differs."""
    path = folder / "request.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in request if before.get(key) != json.loads(json.dumps(request[key]))]
        if different:
            raise ConfigError(
                f"{folder} holds an evaluation with different {', '.join(different)}: choose another output"
            )
        return
    write_atomic(path, json.dumps(request, indent=2).encode() + b"\n")


def write_result(
    folder: Path, request: dict[str, Any], metrics: dict[str, Any], libraries: Sequence[str] = ()
) -> dict[str, Any]:
    """Write result.json: the request, the versions of the libraries, and the metrics; returns its content.

    libraries: additional libraries of this kind of evaluation.
    """
    result = request | {"versions": _versions(request, libraries)} | metrics
    write_atomic(folder / "result.json", json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")
    return result


def append_jsonl(file: TextIO, lines: list[dict[str, Any]]) -> None:
    """Append objects to an open JSON lines file, in one write."""
    file.write("".join(json.dumps(line) + "\n" for line in lines))
    file.flush()


def read_whole_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, after removing an incomplete last line from it; [] if it does not exist."""
    if not path.exists():
        return []
    lines = read_jsonl(path)
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines


def _versions(request: dict[str, Any], more: Sequence[str]) -> dict[str, str]:
    libraries = ["megagpt", "torch", "tokenizers", *more]
    if request.get("sentence_transformer"):
        libraries += ["sentence-transformers", "transformers"]
    found = {name: version(name) for name in libraries} | {"python": platform.python_version()}
    if request.get("sandbox") == "bwrap":
        text = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True).stdout
        found["bubblewrap"] = re.sub(r"\D*", "", text, count=1).strip()
    return found
