"""`megagpt plan`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megagpt import env
from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.config.schema import Config
    from megagpt.plan.devices import Device
    from megagpt.plan.estimate import Estimate
    from megagpt.plan.job import Job


@click.command("plan", cls=RankedCommand, short_help="Predict whether a run fits, its speed, and its cost.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--gpus", type=int, help="Number of GPUs [default: the ranks, or those of one replica].")
@click.option("--device", default="h100", show_default=True, help="Device, such as a100, h100, h200, b200.")
@click.option("--devices", type=options.FILE, metavar="FILE", help="YAML that adds or changes devices.")
@click.option(
    "--fused-accumulation",
    is_flag=True,
    help="Assume that matrix products add to fp32 gradients, as in published runs. megagpt's do not.",
)
@click.option(
    "--scattered-messages",
    is_flag=True,
    help="Assume that tensor ranks share the sending between stages, as in arXiv 2104.04473. megagpt's do not.",
)
@click.option("--search", "searching", is_flag=True, help="Rank the ten fastest layouts that fit.")
@click.option("--trace", "tracing", is_flag=True, help="Also build the ranks that differ, as fake tensors.")
@click.option("--check", "checking", is_flag=True, help="Check data, folders and machines, on all ranks.")
@click.option(
    "--max-epochs",
    type=float,
    default=4,
    show_default=True,
    help="With --check: more passes over a corpus are a problem.",
)
@click.option("--hashes", is_flag=True, help="With --check: read the whole corpora, and compare their hashes.")
@click.option("--need-gpus", is_flag=True, help="With --check: a rank without a GPU is a problem.")
@click.option("--html", type=options.FILE, metavar="FILE", help="Also write a page with plots of memory and timeline.")
@options.as_json
def command(
    overrides: tuple[str, ...],
    gpus: int | None,
    device: str,
    devices: Path | None,
    fused_accumulation: bool,
    scattered_messages: bool,
    searching: bool,
    tracing: bool,
    checking: bool,
    max_epochs: float,
    hashes: bool,
    need_gpus: bool,
    html: Path | None,
    as_json: bool,
) -> int:
    """Predict whether a run fits, how fast it is and what it costs. No GPU is needed.

    \b
    Examples
      megagpt plan experiment=pretrain_1_3b --gpus 8 --device h100
      megagpt plan experiment=pretrain_175b --gpus 1024 --device h100 --search
      megagpt plan experiment=pretrain_13b parallel.tensor_parallel_size=8 --gpus 64 --device a100 --json
      megagpt plan experiment=pretrain_1_3b --gpus 8 --trace --html plan.html
      megagpt plan experiment=pretrain_1_3b --check --nproc-per-node 8
    """
    from megagpt.config.load import load
    from megagpt.plan.devices import find_device, load_devices
    from megagpt.plan.job import Job

    config = load(list(overrides))
    found = find_device(device, load_devices(devices))
    replica = config.parallel.tensor_parallel_size * config.parallel.pipeline_parallel_size
    ranks = env.world_size()
    gpus = gpus if gpus is not None else ranks if ranks > 1 else replica
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus} must be at least 1")
    if (fused_accumulation or scattered_messages) and (searching or checking or config.stage.name == "ppo"):
        raise ConfigError(
            "--fused-accumulation and --scattered-messages are assumptions about one model's training: leave them out"
            " with --search, --check and stage=ppo"
        )
    if checking:
        return check(config, gpus, max_epochs=max_epochs, hashes=hashes, need_gpus=need_gpus, as_json=as_json)
    if searching:
        search(config, gpus, found, as_json)
    else:
        plan(
            Job(config, gpus, fused_accumulation, scattered_messages),
            found,
            tracing=tracing,
            html=html,
            as_json=as_json,
        )
    return 0


def plan(job: "Job", device: "Device", *, tracing: bool, html: Path | None, as_json: bool) -> None:
    """Print the plan. Raises ConfigError for a run that breaks a rule or does not fit."""
    from megagpt.config.rules import check
    from megagpt.plan import tables
    from megagpt.plan.estimate import estimate_training
    from megagpt.plan.page import build_page
    from megagpt.plan.ppo import PPOEstimate
    from megagpt.plan.run import estimate
    from megagpt.plan.search import remedies
    from megagpt.train.metrics import replace_file

    try:
        check(job.config, job.gpus)
    except ConfigError as error:
        raise ConfigError(f"{error}\n--search finds layouts for --gpus {job.gpus}") from None
    found = estimate(job, device)
    changes = [] if found.fits else remedies(found.job, device)
    refusal = "" if found.fits else tables.refusal(found, changes)
    report = plan_dict(found) | {"remedies": [layout_dict(change) for change in changes]}
    shown = [tables.summary(found), tables.memory(found), tables.time(found), tables.assumed(found)]
    if tracing:
        from megagpt.plan.trace import trace

        models = found.models if isinstance(found, PPOEstimate) else {"the model": found.job}
        traced = {name: (estimate_training(job, device), trace(job)) for name, job in models.items()}
        report["trace"] = {name: tables.compare(*pair) for name, pair in traced.items() if tables.learns(name)}
        shown += [tables.trace(*pair, name) for name, pair in traced.items()]
    if html:
        replace_file(html, build_page(found, refusal))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show(*shown)
    if refusal:
        raise ConfigError(refusal)


def search(config: "Config", gpus: int, device: "Device", as_json: bool) -> None:
    """Print the fastest layouts. Raises ConfigError when none fits."""
    from megagpt.plan import tables
    from megagpt.plan.search import nearest, search

    found = search(config, gpus, device)
    if as_json:
        click.echo(json.dumps([layout_dict(layout) for layout in found], indent=2))
    elif found:
        show(tables.layouts(found))
        click.echo(f"the fastest: {' '.join(found[0].overrides)}")
    if found:
        return
    layout, changes = nearest(config, gpus, device)
    if layout is None:
        batch, heads, layers = config.optim.global_batch_size, config.model.num_attention_heads, config.model.num_layers
        raise ConfigError(
            f"no layout of {config.model.name} keeps the rules on {gpus} GPUs: optim.global_batch_size ({batch})"
            f" must be a multiple of the replicas, GPUs / (TP x PP), where TP divides the heads ({heads}) and PP the"
            f" layers ({layers}): change the batch or the number of GPUs"
        )
    raise ConfigError(
        f"no layout of {config.model.name} that --search tries fits on {gpus} x {device.name}. The one that needs least"
        f" memory ({' '.join(layout.overrides) or 'as given'}) {tables.refusal(layout.plan, changes)}"
    )


def check(config: "Config", gpus: int, *, max_epochs: float, hashes: bool, need_gpus: bool, as_json: bool) -> int:
    """Check everything together with the other ranks; rank 0 prints the problems. Returns the exit code."""
    from megagpt.checkpoint import current_world
    from megagpt.config.rules import check
    from megagpt.config.schema import ParallelConfig
    from megagpt.parallel import launch
    from megagpt.plan.check import check_run, data_files
    from megagpt.plan.environment import check_environment

    problems, facts = [], []
    try:
        check(config, gpus)
    except ConfigError as error:
        problems.append(str(error))
    launch.initialize(ParallelConfig(), config.seed)
    world = current_world()
    of_run = world.broadcast(check_run(config, max_epochs, hashes) if world.rank == 0 else None)
    of_machines = check_environment(world, data_files(config), need_gpus)
    launch.shutdown()
    problems += [*of_run[0], *of_machines[0]]
    facts += [*of_run[1], *of_machines[1]]
    if world.rank == 0 and as_json:
        click.echo(json.dumps({"problems": problems, "facts": facts}, indent=2))
    elif world.rank == 0:
        click.echo("\n".join([*facts, *(f"PROBLEM {problem}" for problem in problems)]))
        click.echo(f"{len(problems)} problems" if problems else "everything is in place")
    return 1 if problems else 0


def layout_dict(layout: Any) -> dict[str, Any]:
    """A layout of the search, as values for JSON."""
    return {"overrides": layout.overrides, **plan_dict(layout.plan)}


def plan_dict(plan: "Estimate") -> dict[str, Any]:
    """A plan as values for JSON, with its assumptions and the reasons why its time may be wrong."""
    from megagpt.plan.assumptions import assumptions, doubts

    return plan.to_dict() | {"assumes": assumptions(plan.job, plan.device), "not_trustworthy": doubts(plan)}


def show(*tables: Any) -> None:
    """Print rich's tables. Outside a terminal they are not limited to the width of one."""
    from rich.console import Console

    console = Console()
    for table in tables:
        (console if console.is_terminal else Console(width=160)).print(table)
