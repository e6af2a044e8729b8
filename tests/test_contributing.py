"""CONTRIBUTING.md names files, packages and targets that are there."""

import re

import pytest

from tests.test_policies import ROOT, SHARED, make_targets

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLACES = ("", "megagpt", "tests", "kernels", "configs")
"""Folders that its paths begin in."""


def named() -> set[str]:
    """Every path in backticks, with folders or an ending, but for those of something new."""
    found = re.findall(r"`([\w./*-]+(?:/|\.(?:py|md|json|yaml|txt)))`", TEXT)
    return {path for path in found if "NAME" not in path}


@pytest.mark.parametrize("path", sorted(named()))
def test_a_path_is_there(path):
    inside = [found for folder in ("megagpt", "kernels", "tests") for found in (ROOT / folder).rglob(path)]
    assert inside or any(list((ROOT / place).glob(path)) for place in PLACES)


def test_the_tour_has_every_package():
    tour = re.search(r"```\nmegagpt/\n(.*?)```", TEXT, re.DOTALL)[1]
    packages = {path.parent.name for path in (ROOT / "megagpt").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", tour, re.MULTILINE)) == packages
    for folder in re.findall(r"^(\w+)/", tour, re.MULTILINE):
        assert (ROOT / folder).is_dir()
    assert ", ".join(f"`{name}`" for name in SHARED[:-1]) + f" and `{SHARED[-1]}`" in TEXT


def test_the_tiers_are_targets_of_make():
    named_targets = set(re.findall(r"`make ([\w-]+)`", TEXT))
    assert named_targets <= make_targets()
    assert {"test", "test-slow", "test-all", "test-thorough"} <= named_targets
