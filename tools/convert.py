"""Convert a checkpoint between formats; what it is is found out, and the result is proven to give the same logits.

    python tools/convert.py runs/demo demo_hf --to huggingface
    python tools/convert.py demo_hf runs/imported --to megagpt
    python tools/convert.py iter_0005000 demo_hf --to huggingface --like runs/demo/config.yaml

SOURCE may be a run folder (its newest valid checkpoint). TARGET must not exist, and appears whole or not at all.
Tensors pass one at a time, so memory is that of the largest; the proof then loads each side in fp32, one by one.
Nothing in a checkpoint is run.
"""

import argparse
import logging
from pathlib import Path

from megagpt.checkpoint.convert.convert import FORMATS, convert
from megagpt.checkpoint.convert.native import NAME, detect, open_source
from megagpt.checkpoint.convert.verify import TOLERANCE
from megagpt.config.load import from_dict
from megagpt.config.load import read as read_config
from megagpt.config.schema import ModelConfig
from megagpt.log import run_tool

log = logging.getLogger("megagpt.tools.convert")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, help="checkpoint folder")
    add("target", type=Path, help="new folder")
    add("--to", required=True, choices=FORMATS, help="format of the new folder")
    add(
        "--like", type=Path, help="config.yaml or checkpoint of megagpt with the model's shape, where a format has none"
    )
    add("--no-verify", action="store_true", help="do not compare the logits of both sides")
    add("--tolerance", type=float, default=TOLERANCE, help="largest difference of logits (default: %(default)s)")
    args = parser.parse_args()
    like = shape_of(args.like) if args.like else None
    result = convert(args.source, args.target, args.to, like, not args.no_verify, args.tolerance)
    if result.dropped:
        log.warning("%s has no place for: %s (left out)", args.to, ", ".join(result.dropped))
    if result.source.tokenizer is None and args.to in (NAME, "huggingface"):
        log.warning("%s has no tokenizer.json: copy the right one into %s", args.source, args.target)
    if result.difference is None:
        log.warning("not verified: --no-verify")
    else:
        log.info("verified: the logits of both sides differ by at most %.2g", result.difference)
    log.info("%s (%s) is %s (%s)", args.source, result.source.format, args.target, args.to)
    return 0


def shape_of(path: Path) -> ModelConfig:
    """The model of a megagpt config.yaml or checkpoint."""
    return open_source(path, None).model if detect(path) else from_dict(read_config(path)).model


if __name__ == "__main__":
    run_tool(main)
