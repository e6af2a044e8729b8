"""The last step of every corpus: move its shards into place, and remove the shards of an older corpus."""

import json
from pathlib import Path

from megagpt.data.corpus.tally import Tally
from megagpt.data.files import sync_folder, write_atomic

CORPUS = "corpus"
"""Folder of the shards before they are moved."""


def save_tally(folder: Path, rank: int, tally: Tally) -> None:
    """Write a shard's tally, for `load_tally`."""
    write_atomic(folder / f"{rank:05d}.json", json.dumps(tally.to_json()).encode())


def load_tally(folder: Path, rank: int) -> Tally:
    """The tally that was saved, or an empty one."""
    path = folder / f"{rank:05d}.json"
    return Tally.from_json(json.loads(path.read_bytes())) if path.exists() else Tally()


def move_shards(work: Path, output: Path, names: list[str]) -> None:
    """Move shards into place. This can be repeated after an interruption at any moment.

    If a corpus with other options is there, the shards that its report lists are removed.
    """
    output.mkdir(parents=True, exist_ok=True)
    older, here = work / "older.json", output / "report.json"
    if here.exists():
        here.replace(older)
    if older.exists():
        for name in json.loads(older.read_bytes())["shards"]:
            if name not in names:
                (output / Path(name).name).unlink(missing_ok=True)
    for name in names:
        made = work / CORPUS / name
        if made.exists():
            made.replace(output / name)
    sync_folder(output)
