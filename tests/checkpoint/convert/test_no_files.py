"""Links, pipes, devices and folders in the place of a checkpoint's files and folders: named, never followed."""

import os
from pathlib import Path

import pytest

from megagpt.checkpoint.convert.convert import detect, opened
from megagpt.errors import CheckpointError
from tests.checkpoint.convert.formats import FORMATS


def read(folder: Path) -> None:
    found = detect(folder, list(FORMATS.values()))
    opened(found, folder, None)


def chosen(paths: list[Path]) -> list[Path]:
    """One of each kind: those of the layers are alike."""
    kinds = {"layer" if "layer" in str(path) or path.suffix == ".distcp" else path.name: path for path in paths}
    return list(kinds.values())


@pytest.mark.parametrize("name", FORMATS)
def test_links_to_folders_are_refused(name, written):
    """Each folder within the checkpoint; what the user gave, or a step of a run, may be a link to another disk."""
    root = written(name)
    within = [path for path in root.rglob("*") if path.is_dir() and not path.name.startswith("step_")]
    for number, folder in enumerate(chosen(within)):
        away = root.parent / f"away{number}"
        folder.rename(away)
        folder.symlink_to(away)
        with pytest.raises(CheckpointError, match=f"{folder.name} is (a symbolic link|not a folder)"):
            read(root)
        folder.unlink()
        away.rename(folder)
    link = root.parent / "link"
    link.symlink_to(root)
    read(link)


UNUSED = ("metadata.json", "__0_state.distcp", "optimizer_state.pt", "step.pt")
"""Files that others write and nothing of ours needs."""
THINGS = {
    "a link to nothing": lambda file: file.symlink_to("/nothing"),
    "a link to a device": lambda file: file.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_file_is_named(name, thing, written, caplog):
    root = written(name)
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in UNUSED]
    for file in chosen(files):
        data = file.read_bytes()
        file.unlink()
        THINGS[thing](file)
        caplog.clear()
        if file.name == "latest" and name == "megagpt":  # without it the newest is taken, and the log says why
            read(root)
            assert str(file) in caplog.text
        else:
            with pytest.raises(CheckpointError) as caught:
                read(root)
            assert file.name in str(caught.value)
        file.rmdir() if thing == "a folder" else file.unlink()
        file.write_bytes(data)
