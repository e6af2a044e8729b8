"""The chain of datatrove pipelines that makes a corpus of text. Importing this module needs datatrove."""

from pathlib import Path
from typing import Any

from megagpt.data.corpus.duplicates.steps import FindRepeated, near_phases, ranges
from megagpt.data.corpus.executors import Phase
from megagpt.data.corpus.text import steps
from megagpt.data.corpus.text.filtered import NEAR, SHARE, Plan
from megagpt.data.corpus.text.options import Options


def phases(plan: Plan, output: Path, options: Options, shards: int, job: dict[str, Any]) -> list[Phase]:
    """All phases, in order. Later phases use the findings of earlier ones."""
    work, recipe = plan.work, plan.recipe
    duplicates, everything = recipe.duplicates, plan.references + shards
    chain: list[Phase] = []
    found: tuple[str, ...] = ()
    if plan.references:
        chain.append(Phase("references", [steps.ReadReferences(plan)], plan.references))
    chain.append(Phase("filter", [steps.Filter(plan, options)], shards, True))
    if recipe.quality and recipe.quality.rule == "share":
        chain.append(Phase("share", [steps.FindShare(work, shards, recipe.quality.share)], 1))
        found += (SHARE,)
    for what, name in plan.compared:
        # A document that an earlier comparison drops must not be a first occurrence, so the next one waits for it.
        chain.append(Phase(f"{name}_hashes", [steps.Offer(plan, found, what)], shards, True))
        chain.append(Phase(name, [FindRepeated(work, steps.offered(work, what).name, what)], ranges(everything)))
        found += (what,)
    if duplicates and duplicates.near:
        chain.append(Phase("sign", [steps.Sign(plan, found)], shards, True))
        runs_of = steps.RunsOfCandidates(plan, found)
        chain += near_phases(work, everything, plan.first_place, duplicates.near.verify, runs_of)
        found += (NEAR,)
    if options.decontaminate:
        chain.append(Phase("count", [steps.Count(plan, found)], shards, True))
        chain.append(Phase("add_counts", [steps.AddCounts(work, shards)], 1))
    write = steps.Write(plan, found, options.compression, bool(options.decontaminate))
    publish = steps.Publish(plan, output, options.compression, shards, job)
    return [*chain, Phase("write", [write], shards, True), Phase("publish", [publish], 1)]
