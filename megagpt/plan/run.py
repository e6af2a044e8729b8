"""Plans a run of any stage."""

from megagpt.plan.devices import Device
from megagpt.plan.embed import embed_memory, estimate_embed
from megagpt.plan.estimate import Estimate, estimate_training
from megagpt.plan.job import Job
from megagpt.plan.memory import stage_memory
from megagpt.plan.ppo import estimate_ppo, models_of, rank_memory


def estimate(job: Job, device: Device, simulated: bool = True) -> Estimate:
    """Plan `job`, whose configuration has passed the rules for its number of GPUs, on `device`.

    simulated: False takes the pipeline's time from a formula, without a timeline; faster, for a search.
    """
    plans = {"ppo": estimate_ppo, "embed": estimate_embed}
    return plans.get(job.config.stage.name, estimate_training)(job, device, simulated)


def fits(job: Job, device: Device) -> bool:
    """Whether every rank has enough memory; faster than a whole plan."""
    if job.config.stage.name == "ppo":
        held = [held.total for _, held in rank_memory(models_of(job.config, job.gpus))]
    else:  # the first or the last stage needs the most memory
        memory = embed_memory if job.config.stage.name == "embed" else stage_memory
        held = [memory(job, stage).total for stage in {0, job.pipeline_size - 1}]
    return max(held) <= device.usable_bytes
