"""Say before a run whether it fits, how fast it will be and what it will cost; nothing here needs a GPU.

python tools/plan.py experiment=pretrain_1_3b --gpus 8 --device h100
python tools/plan.py experiment=pretrain_175b --gpus 1024 --device h100 --search
python tools/plan.py experiment=pretrain_13b parallel.tensor_parallel_size=8 --gpus 64 --device a100 --json
python tools/plan.py experiment=pretrain_1_3b --gpus 8 --trace --html plan.html
torchrun --nproc-per-node 8 tools/plan.py experiment=pretrain_1_3b --check
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megagpt import env
from megagpt.config.load import load
from megagpt.config.rules import check
from megagpt.config.schema import Config, ParallelConfig
from megagpt.errors import ConfigError
from megagpt.log import run_tool
from megagpt.plan import tables
from megagpt.plan.devices import Device, find_device, load_devices
from megagpt.plan.estimate import estimate_training
from megagpt.plan.job import Job
from megagpt.plan.page import build_page
from megagpt.plan.ppo import PPOEstimate
from megagpt.plan.run import estimate
from megagpt.plan.search import Layout, remedies, search
from megagpt.train.metrics import replace_file


def main() -> int:
    """Plan, print, and refuse what does not fit."""
    args = _parser().parse_intermixed_args()
    config = load(args.overrides)
    device = find_device(args.device, load_devices(args.devices))
    replica = config.parallel.tensor_parallel_size * config.parallel.pipeline_parallel_size
    ranks = env.world_size()
    gpus = args.gpus if args.gpus is not None else ranks if ranks > 1 else replica
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus} must be at least 1")
    if args.check:
        return _check(config, gpus, args)
    if args.search:
        return _search(config, gpus, device, args.json)
    try:
        check(config, gpus)
    except ConfigError as error:
        raise ConfigError(f"{error}\n--search finds layouts for --gpus {gpus}") from None
    plan = estimate(Job(config, gpus), device)
    changes = [] if plan.fits else remedies(plan.job, device)
    refusal = "" if plan.fits else tables.refusal(plan, changes)
    report = plan.to_dict() | {"remedies": [_layout(change) for change in changes]}
    shown = [tables.summary(plan), tables.memory(plan), tables.time(plan)]
    if args.trace:
        from megagpt.plan.trace import trace

        models = plan.models if isinstance(plan, PPOEstimate) else {"the model": plan.job}
        traced = {name: (estimate_training(job, device), trace(job)) for name, job in models.items()}
        report["trace"] = {name: tables.compare(*pair) for name, pair in traced.items() if tables.learns(name)}
        shown += [tables.trace(*pair, name) for name, pair in traced.items()]
    if args.html:
        replace_file(args.html, build_page(plan, refusal))
    _show(shown, report, args.json)
    if refusal:
        raise ConfigError(refusal)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the run: group=option and key=value, as for python -m megagpt")
    parser.add_argument("--gpus", type=int, help="number of GPUs (default: torchrun's ranks, or those of one replica)")
    parser.add_argument(
        "--device", default="h100", help="device, such as a100, h100, h200, b200 (default: %(default)s)"
    )
    parser.add_argument("--devices", type=Path, metavar="FILE", help="YAML that adds or changes devices")
    parser.add_argument("--search", action="store_true", help="rank the ten fastest layouts that fit")
    parser.add_argument("--trace", action="store_true", help="also build the ranks that differ, as fake tensors")
    parser.add_argument(
        "--check", action="store_true", help="look whether all is in place, under torchrun on all ranks"
    )
    parser.add_argument(
        "--max-epochs", type=float, help="with --check: passes over a corpus that are no problem yet (default: 4)"
    )
    parser.add_argument("--hashes", action="store_true", help="with --check: read all of the corpora, and hash them")
    parser.add_argument("--need-gpus", action="store_true", help="with --check: a rank without a GPU is a problem")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with memory and timeline drawn")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser


def _search(config: Config, gpus: int, device: Device, as_json: bool) -> int:
    found = search(config, gpus, device)
    if as_json:
        print(json.dumps([_layout(layout) for layout in found], indent=2))
    elif found:
        _console().print(tables.layouts(found))
        print("the fastest:", " ".join(found[0].overrides))
    if not found:
        raise ConfigError(f"no layout of {config.model.name} fits on {gpus} x {device.name}: take more GPUs")
    return 0


def _check(config: Config, gpus: int, args: argparse.Namespace) -> int:
    """Look at everything; rank 0 says what is wrong. Under torchrun or srun all ranks take part."""
    from megagpt.checkpoint import current_world
    from megagpt.parallel import launch
    from megagpt.plan.check import LARGEST_EPOCHS, check_run, data_files
    from megagpt.plan.environment import check_environment

    problems, facts = [], []
    try:
        check(config, gpus)
    except ConfigError as error:
        problems.append(str(error))
    launch.initialize(ParallelConfig(), config.seed)
    try:
        world = current_world()
        of_run = world.broadcast(
            check_run(config, args.max_epochs or LARGEST_EPOCHS, args.hashes) if world.rank == 0 else None
        )
        of_machines = check_environment(world, data_files(config), args.need_gpus)
    finally:
        launch.shutdown()
    problems += [*of_run[0], *of_machines[0]]
    facts += [*of_run[1], *of_machines[1]]
    if world.rank == 0 and args.json:
        print(json.dumps({"problems": problems, "facts": facts}, indent=2))
    elif world.rank == 0:
        print("\n".join([*facts, *(f"PROBLEM {problem}" for problem in problems)]))
        print(f"{len(problems)} problems" if problems else "everything is in place")
    return 1 if problems else 0


def _layout(layout: Layout) -> dict:
    return {"overrides": layout.overrides, **layout.plan.to_dict()}


def _show(shown: list[Table], report: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for table in shown:
        _console().print(table)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)


if __name__ == "__main__":
    run_tool(main)
