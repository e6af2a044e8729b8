"""The end of every corpus: its shards are moved to where it belongs, and the shards of an older one go."""

import json
from pathlib import Path

from megagpt.data.corpus.tally import Tally
from megagpt.data.files import sync_folder, write_atomic

CORPUS = "corpus"
"""Folder of the shards before they are moved."""


def save_tally(folder: Path, rank: int, tally: Tally) -> None:
    """Put a shard's tally where load_tally finds it."""
    write_atomic(folder / f"{rank:05d}.json", json.dumps(tally.to_json()).encode())


def load_tally(folder: Path, rank: int) -> Tally:
    """The tally that was saved, or an empty one."""
    path = folder / f"{rank:05d}.json"
    return Tally.from_json(json.loads(path.read_bytes())) if path.exists() else Tally()


def move_shards(work: Path, output: Path, names: list[str]) -> None:
    """Move shards into place. Can be done again after an interruption at any moment.

    Shards of a corpus that was made with other options, by what its report lists, are removed.
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
