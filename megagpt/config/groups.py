"""The folder of the recipes, and the names of its groups and options."""

from pathlib import Path

import megagpt.configs

CONFIG_DIR = Path(megagpt.configs.__file__).parent.resolve()
CORPUS_DIR = CONFIG_DIR / "corpus"
"""Recipes of text corpora. They say how data is made and are not part of a run's configuration."""


def groups() -> dict[str, list[str]]:
    """Names of the config groups, each with its options."""
    folders = sorted(folder for folder in CONFIG_DIR.iterdir() if folder != CORPUS_DIR and any(folder.glob("*.yaml")))
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
