"""Make a corpus of text with a chain of datatrove pipelines, on this machine or on a cluster."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.cluster import Ray, Slurm
from megagpt.data.corpus.job import Job, Result, check_at_least, cut, digest, make, needed, work_folder
from megagpt.data.corpus.text.inputs.units import list_units
from megagpt.data.corpus.text.limits import Decontamination
from megagpt.data.corpus.text.options import Options
from megagpt.data.corpus.text.recipe import to_dict
from megagpt.errors import ConfigError

log = logging.getLogger(__name__)

MOST_SHARDS = 10_000
"""Largest number of shards. Each task of a step that compares all documents opens a file of every shard."""


def build(
    inputs: Sequence[str | Path],
    output: str | Path,
    options: Options,
    workers: int = 1,
    cluster: Slurm | Ray | None = None,
) -> Result:
    """Make the corpus `output`/*.jsonl.*, report.json, report.md and timing.json from crawls, dumps or books.

    All files but timing.json, the CPU seconds of each step, are the same every time. Raises ConfigError for options
    that contradict each other or are out of range, and the errors of `job.make`.
    """
    with needed("making a corpus of text"):
        from megagpt.data.corpus.text import references
        from megagpt.data.corpus.text.filtered import Plan
        from megagpt.data.corpus.text.phases import phases
    options = _checked(options, workers)
    output = Path(output).absolute()
    work = work_folder(output)
    own = tuple(f"{folder}/" for folder in (output, work))  # these may be inside an input
    units = [unit for unit in list_units(options.kind, inputs) if not unit.path.startswith(own)]
    shards, sizes = cut(units, [unit.bytes for unit in units], options.shard_mb * 1e6, MOST_SHARDS)
    against = references.list_shards(options.against)
    about = _about(inputs, options, digest([*units, *_stamps(against)], _files(options), "the recipe or the options"))
    plan = Plan(work, options.recipe, len(against), options.samples)

    def set_up(work: Path) -> None:
        references.save_list(work, against)
        _set_up(work, options)

    job = Job(
        output,
        about,
        shards,
        sizes,
        set_up,
        phases=lambda work: phases(plan, output, options, len(shards), about),
        bytes_read=lambda report: report["input"]["bytes"],
    )
    return make(job, workers, cluster)


def _about(inputs: Sequence[str | Path], options: Options, sources: str) -> dict[str, Any]:
    plain = vars(options) | {"recipe": to_dict(options.recipe)}
    return {"inputs": list(map(str, inputs)), "sources": sources} | plain


def _stamps(paths: list[str]) -> list[tuple[str, int, int]]:
    return [(path, about.st_size, about.st_mtime_ns) for path in paths for about in [Path(path).stat()]]


def _files(options: Options) -> list[str]:
    """All files, besides the inputs, that affect the result."""
    recipe = options.recipe
    named = [recipe.languages and recipe.languages.model, recipe.c4 and recipe.c4.bad_words]
    if recipe.urls:
        named += [value for name, value in vars(recipe.urls).items() if isinstance(value, str) and name != "lists"]
    if recipe.quality and recipe.quality.model:
        named.append(str(Path(recipe.quality.model) / "model.json"))  # it has the SHA-256 of the model's other files
    return [*options.decontaminate, *options.links, *(name for name in named if name and name != "cld2")]


def _checked(options: Options, workers: int) -> Options:
    """The options, completed where one option implies another. Raises ConfigError for a contradiction."""
    check_at_least(
        ("--workers", workers, 1),
        ("--samples", options.samples, 1),
        ("--shard-mb", options.shard_mb, 0.001),
        ("--max-record-mb", options.max_record_mb, 0.001),
    )
    recipe = options.recipe
    near = recipe.duplicates and recipe.duplicates.near
    if max(near.words if near else 0, recipe.decontamination.ngram if recipe.decontamination else 0) > 64:
        raise ConfigError("duplicates.near.words and decontamination.ngram can be 64 at most")
    if recipe.quality and not recipe.quality.model:
        raise ConfigError(
            "the recipe keeps documents by their quality: give --quality-model FOLDER, which `megagpt data quality "
            "train` makes, or leave this step out with --set quality=null"
        )
    if options.against and not (recipe.duplicates and (recipe.duplicates.documents or recipe.duplicates.urls or near)):
        raise ConfigError(
            "--against removes copies, but the recipe searches for none: turn on duplicates.documents or"
            " duplicates.near"
        )
    if options.decontaminate and not recipe.decontamination:
        log.info("the recipe has no decontamination: GPT-3's limits are used")
        return replace(options, recipe=replace(recipe, decontamination=Decontamination()))
    if recipe.decontamination and not options.decontaminate:
        log.warning("the recipe cuts out text of evaluations, but no --decontaminate FILE is given: nothing is cut out")
    return options


def _set_up(work: Path, options: Options) -> None:
    """Write the index of evaluations and the scores of links to the work folder, for the tasks."""
    from megagpt.data.corpus.text.decontamination.index import read_index
    from megagpt.data.corpus.text.inputs.links import load_links
    from megagpt.data.corpus.text.steps import EVALUATION, LINKS

    if options.decontaminate:
        index, _ = read_index(options.decontaminate, options.recipe.decontamination.ngram)
        index.save(work / EVALUATION)
    if options.links:
        links = load_links(options.links, options.min_link_score)
        with (work / LINKS).open("wb") as file:
            np.savez(file, hashes=links.hashes, scores=links.scores, min_score=links.min_score)
