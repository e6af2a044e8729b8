"""Make a corpus of source code: filtered, free of evaluation data and secrets, and without duplicates.

    python tools/corpus.py src/ checkout/ sources.tar.gz --languages python --output data/code
    python tools/corpus.py repos/ --languages c c++ --licences permissive \\
        --decontaminate HumanEval.jsonl.gz mbpp.jsonl --workers 16 --output data/code
    python tools/corpus.py /shared/repos --languages python --output /shared/code --slurm-partition cpu

Inputs are folders, git checkouts (of which tracked files are taken) and archives (zip, tar, tar.gz, tar.bz2, tar.xz;
nothing is extracted), also inside of folders. The output is OUTPUT/*.jsonl.zst with text, path, language and licence,
for tools/preprocess.py, and report.md and report.json, which account for every file of the input. An interrupted run
goes on where it stopped when the command is given again. docs/corpus.md explains the rules.
"""

import argparse

from megagpt.data.corpus import build, rules
from megagpt.data.corpus.build import Options, Slurm
from megagpt.errors import ConfigError
from megagpt.log import run_tool

COMPRESSIONS = ("zst", "gz", "none")


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Options(())
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="folder, git checkout or archive")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the corpus goes")
    parser.add_argument("--languages", nargs="+", required=True, metavar="NAME", help="languages to keep")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")

    group = parser.add_argument_group("rules")

    def add(name: str, value: float, text: str) -> None:
        group.add_argument(name, type=type(value), default=value, help=f"{text} (default: %(default)s)")

    add("--max-bytes", rules.MAX_BYTES, "size of the largest file")
    add("--max-mean-line", rules.MAX_MEAN_LINE, "mean line length, in characters")
    add("--max-line", rules.MAX_LINE, "length of the longest line, in characters")
    add("--min-alphanumeric", rules.MIN_ALPHANUMERIC, "share of letters and digits")
    add(
        "--generated-lines", rules.GENERATED_LINES, "first lines that are searched for marks of generated code; 0: none"
    )
    group.add_argument(
        "--licences", nargs="+", metavar="SPDX", help="allowed licences, or `permissive` (default: any, and none)"
    )
    group.add_argument("--decontaminate", nargs="+", default=[], metavar="FILE", help="evaluation data, jsonl(.gz)")
    add("--ngram", default.ngram, "words in a row that no file may share with evaluation data")
    add("--minhash-words", default.minhash_words, "words in the runs that near-duplicates are compared by")
    add("--minhash-buckets", default.minhash_buckets, "chances to be found alike")
    add("--minhash-hashes", default.minhash_hashes, "hashes that must agree in a bucket")

    group = parser.add_argument_group("output")
    group.add_argument(
        "--compression", choices=COMPRESSIONS, default="zst", help="of the shards (default: %(default)s)"
    )
    add("--samples", default.samples, "files that the report shows for each rule")
    add("--shard-mb", float(default.shard_mb), "source code in a shard, in MB")

    group = parser.add_argument_group("Slurm")
    group.add_argument("--slurm-partition", help="submit the work there instead of doing it here")
    group.add_argument("--slurm-time", default=Slurm.time, help="limit for each job (default: %(default)s)")
    add("--slurm-tasks", Slurm.tasks, "tasks that run at a time")
    add("--slurm-memory-gb", Slurm.memory_gb, "memory for each task")
    group.add_argument("--slurm-option", action="append", default=[], metavar="NAME=VALUE", help="another of sbatch")
    return parser.parse_args()


def slurm_of(args: argparse.Namespace) -> Slurm | None:
    """How to run on Slurm, where that is asked for."""
    if not args.slurm_partition:
        return None
    if wrong := [item for item in args.slurm_option if "=" not in item]:
        raise ConfigError(f"--slurm-option {wrong[0]}: give it as NAME=VALUE, for example account=me")
    more = dict(item.lstrip("-").split("=", 1) for item in args.slurm_option)
    return Slurm(args.slurm_partition, args.slurm_time, args.slurm_tasks, args.slurm_memory_gb, more)


def main() -> None:
    """Make the corpus."""
    args = parse()
    limits = rules.Limits(
        args.max_bytes, args.max_mean_line, args.max_line, args.min_alphanumeric, args.generated_lines
    )
    options = Options(
        tuple(args.languages),
        limits,
        licences=tuple(args.licences) if args.licences else None,
        decontaminate=tuple(args.decontaminate),
        ngram=args.ngram,
        minhash_words=args.minhash_words,
        minhash_buckets=args.minhash_buckets,
        minhash_hashes=args.minhash_hashes,
        compression=args.compression,
        samples=args.samples,
        shard_mb=args.shard_mb,
    )
    result = build.build(args.inputs, args.output, options, args.workers, slurm_of(args))
    if result.report is None:
        return
    found, corpus = result.report["input"], result.report["corpus"]
    print(f"{'rule':20} {'files':>10} {'share':>8} {'MB':>12}")
    rows = [("input", found["files"], found["bytes"])]
    rows += [(rule, count["files"], count["bytes"]) for rule, count in result.report["dropped"].items()]
    rows += [("kept", corpus["documents"], corpus["source_bytes"])]
    for name, files, size in rows:
        print(f"{name:20} {files:10,} {files / found['files']:8.2%} {size / 1e6:12,.3f}")
    if result.mb_per_second_core:
        print(f"{result.mb_per_second_core:.2f} MB/s a core, {result.mb_per_cpu_second:.2f} MB a CPU second")
    print(f"{args.output}: {corpus['documents']:,} documents; report.md has samples of what was dropped")


if __name__ == "__main__":
    run_tool(main)
