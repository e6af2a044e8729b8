"""Make the project's dashboard on Weights & Biases: the metrics that megagpt logs, as named panels in sections.

python tools/wandb_dashboard.py --entity my-team --project megagpt
python tools/wandb_dashboard.py --json    # prints the definition; needs no account and no network
"""

import argparse
import json
from typing import TYPE_CHECKING

from megagpt.config.schema import LoggingConfig
from megagpt.errors import ConfigError
from megagpt.log import run_tool
from megagpt.train.metrics import wandb_name

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SMOOTHING = 0.9
"""Weight of the past in the time-weighted smoothing of noisy panels; the measured points stay visible behind it."""

SECTIONS = {
    # Section: panels as (title, title of the vertical axis, metrics, options of the plot).
    "Training": [
        ("Training loss", "nats per token", ["loss"], {"smoothing": True, "log_y": True}),
        ("Training perplexity", "perplexity", ["perplexity"], {"smoothing": True, "log_y": True}),
        ("Learning rate", "learning rate", ["lr"], {}),
        ("Global batch size", "sequences", ["global_batch_size"], {}),
    ],
    "Validation": [
        ("Held-out loss", "nats per token", ["validation_loss"], {}),
        ("Held-out bits per byte", "bits", ["validation_bits_per_byte"], {}),
        ("Held-out perplexity", "perplexity", ["validation_perplexity"], {"log_y": True}),
        ("Held-out responses, scored by a reward model", "score", ["validation_reward"], {}),
    ],
    "Reward model": [
        ("Accuracy on ranked pairs", "of pairs", ["accuracy"], {"smoothing": True}),
        ("Held-out accuracy on ranked pairs", "of pairs", ["validation_accuracy"], {}),
        ("Margin between ranked answers", "score", ["margin"], {"smoothing": True}),
    ],
    "PPO": [
        ("Score of responses", "score", ["score", "validation_score"], {}),
        ("Reward with penalties", "reward", ["reward"], {}),
        ("Divergence from the reference", "nats per response", ["kl", "validation_kl"], {}),
        ("Weight of the divergence", "coefficient", ["kl_coefficient"], {}),
        ("Ratio to the old policy", "ratio", ["ratio"], {"smoothing": True}),
        ("Divergence from the old policy", "nats per token", ["approximate_kl"], {"smoothing": True}),
        ("Clipped choices", "of tokens", ["clip_fraction", "value_clip_fraction"], {"smoothing": True}),
        ("Entropy", "nats per token", ["entropy"], {"smoothing": True}),
        ("Variance explained by the critic", "of the returns'", ["explained_variance"], {}),
        ("Loss of the critic", "half the squared error", ["value_loss"], {"smoothing": True, "log_y": True}),
        (
            "Gradient norm of the critic",
            "norm before clipping",
            ["value_grad_norm"],
            {"smoothing": True, "log_y": True},
        ),
        ("Length of responses", "tokens", ["response_tokens", "validation_response_tokens"], {}),
        ("Responses that end", "of responses", ["eos_rate", "validation_eos_rate"], {}),
        ("Pretraining loss beside", "nats per token", ["pretraining_loss"], {"smoothing": True}),
    ],
    "Speed": [
        ("Throughput", "tokens per second", ["tokens_per_second"], {"smoothing": True}),
        ("Model FLOPs utilisation", "of the device's peak", ["mfu"], {"smoothing": True}),
        ("Time per step", "seconds", ["step_seconds"], {"smoothing": True}),
        ("Time of an iteration of PPO", "seconds", ["rollout_seconds", "scoring_seconds"], {}),
        ("Time of an update of PPO", "seconds", ["critic_seconds", "policy_seconds"], {"smoothing": True}),
    ],
    "Memory": [
        ("Peak memory", "GiB", ["memory_gib"], {}),
    ],
    "Health": [
        ("Gradient norm", "norm before clipping", ["grad_norm"], {"smoothing": True, "log_y": True}),
        ("Skipped steps", "steps since the start", ["skipped_steps"], {}),
        ("Progress", "steps", ["step"], {}),
    ],
}


def dashboard(entity: str, project: str, name: str) -> "Workspace":
    """The dashboard. Nothing is sent before `save()` is called. Raises ConfigError without wandb-workspaces."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ConfigError('the dashboard needs wandb-workspaces: pip install "megagpt[wandb]"') from None

    def plot(title: str, unit: str, metrics: list[str], options: dict[str, bool]) -> wr.LinePlot:
        noisy = {"smoothing_type": "exponentialTimeWeighted", "smoothing_factor": SMOOTHING}
        return wr.LinePlot(
            title=title,
            x=wandb_name("tokens"),
            y=[wandb_name(metric) for metric in metrics],
            title_x="tokens",
            title_y=unit,
            log_y=options.get("log_y"),
            smoothing_show_original=options.get("smoothing"),
            **(noisy if options.get("smoothing") else {}),
        )

    sections = [
        ws.Section(name=section, panels=[plot(*panel) for panel in panels], is_open=True)
        for section, panels in SECTIONS.items()
    ]
    settings = ws.WorkspaceSettings(x_axis=wandb_name("tokens"))
    return ws.Workspace(
        name=name, entity=entity, project=project, sections=sections, settings=settings, auto_generate_panels=False
    )


def main() -> None:
    """Save the dashboard, or print its definition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="user or team on Weights & Biases that owns the project")
    parser.add_argument("--project", default=LoggingConfig.wandb_project, help="its project (default: %(default)s)")
    parser.add_argument("--name", default="megagpt", help="name of the dashboard (default: %(default)s)")
    parser.add_argument("--json", "--dry-run", action="store_true", help="print the definition and send nothing")
    arguments = parser.parse_args()
    if not arguments.json and not arguments.entity:
        parser.error("--entity is needed to save; --json prints the definition instead")
    workspace = dashboard(arguments.entity or "", arguments.project, arguments.name)
    if arguments.json:
        print(json.dumps(workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True), indent=2))
        return
    try:
        workspace.save()
    except Exception as error:  # the client raises many classes: no key, no network, no such entity
        raise ConfigError(
            f"Weights & Biases did not take the dashboard of {arguments.entity}/{arguments.project} ({error}). "
            "Run `wandb login`, and check the entity, the project and the network."
        ) from error
    print(workspace.url)


if __name__ == "__main__":
    run_tool(main)
