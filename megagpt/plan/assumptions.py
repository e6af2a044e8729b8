"""Lists a plan's assumptions in words, and the layouts whose estimated time is known to be wrong."""

from itertools import groupby

from megagpt.config.schema import ModelConfig
from megagpt.plan.devices import GB, Device
from megagpt.plan.estimate import HOST_UPDATE_RATE, Estimate, ring_ranks
from megagpt.plan.job import RANKED_ANSWERS, Job
from megagpt.plan.ppo import COLLECTIVE_SECONDS, LAYER_SECONDS, PPOEstimate


def assumptions(job: Job, device: Device) -> dict[str, str]:
    """{topic: text} of all assumptions of the estimate, except the layout."""
    model, kernels, optim = job.config.model, job.config.kernels, job.config.optim
    kernel = "scores and probabilities in memory" if job.unfused_attention else "a fused kernel"
    logits = "recomputed, never all in memory" if kernels.fuse_output_projection else "in memory"
    accumulation = "inside the matrix product" if job.fused_gradient_accumulation else "in a pass of its own"
    overlap = "behind the last backward pass" if job.config.parallel.overlaps_reduction else "behind nothing"
    messages = f"gradients are reduced {overlap}; no other message overlaps with computation"
    if job.scattered_messages:
        messages += "; tensor-parallel ranks share the sending between pipeline stages"
    found = {
        "attention": f"{attention_pattern(model)}; {kernel} (kernels.attention={kernels.attention})",
        "sequences": _sequences(job),
        "numbers": f"{optim.precision}, gradients in fp32, logits {logits}",
        "dropout": f"{model.hidden_dropout:g} of hidden states, {model.attention_dropout:g} of attention",
        "weights' gradients": f"added to their fp32 sum {accumulation}",
        "messages": messages,
        "the run": "full batch throughout, without interruption, checkpoints or evaluations",
    }
    if job.config.stage.name == "ppo":
        found["generation"] = (
            f"besides reading memory, a token takes {LAYER_SECONDS * 1e6:g} microseconds per layer and"
            f" {COLLECTIVE_SECONDS * 1e6:g} per message"
        )
    return found | _device(job, device)


def _sequences(job: Job) -> str:
    full = f"all have {job.row_length} tokens"
    return f"{full}; {RANKED_ANSWERS} answers to each prompt" if job.config.stage.name == "reward" else full


def _device(job: Job, device: Device) -> dict[str, str]:
    """The device's peak figures, and the fractions of them that a run is assumed to reach."""
    found = {
        "device": (
            f"{device.peak_flops(job.itemsize) / 1e12:g} TFLOP/s: {device.matmul:.0%} of it in large matrix products,"
            f" half as much if one dimension is {device.matmul_half_size:g}; {device.attention:.0%} in fused"
            f" attention; {device.overhead:.0%} more time for operations that are not modelled"
        ),
        "device's memory": (
            f"{device.memory_gib:g} GiB, of which {device.fragmentation:.0%} cannot be used and {device.reserved_gib:g}"
            f" GiB hold no tensors; {device.memory_gbs:g} GB/s, {device.memory:.0%} reached"
        ),
        "device's links": (
            f"nodes of {device.gpus_per_node}; {device.intra_node_gbs:g} GB/s inside, {device.intra_node:.0%} reached;"
            f" {device.inter_node_gbs:g} GB/s between, {device.inter_node:.0%} reached"
        ),
        "proof": (
            "the fractions of A100-80 were calibrated on published runs; the fractions of other devices were not"
            " (docs/benchmarks/published_runs.md; megagpt/plan/devices.yaml)"
        ),
    }
    if job.config.parallel.offload_optimizer != "none":
        found["host"] = (
            f"{device.host_gbs:g} GB/s, {device.host:.0%} reached; its cores update"
            f" {HOST_UPDATE_RATE / GB:g} GB/s for each GPU"
        )
    return found


def attention_pattern(model: ModelConfig) -> str:
    """Dense and banded layers: "1 dense, 1 banded (256 tokens) in turn: 12 dense, 12 banded (256 tokens)"."""
    kinds = [model.window(layer) for layer in range(model.num_layers)]
    names = {window: f"banded ({window} tokens)" if window else "dense" for window in kinds}
    if len(names) == 1:
        return f"all {model.num_layers} layers {names[kinds[0]]}"
    turns = ((names[kind], len(list(layers))) for kind, layers in groupby(kinds[: len(model.attention_pattern)]))
    order = ", ".join(f"{count} {name}" for name, count in turns)
    counts = ", ".join(f"{kinds.count(window)} {name}" for window, name in names.items())
    return f"{order} in turn: {counts}"


def doubts(plan: Estimate) -> list[str]:
    """Reasons not to trust the time of a plan; empty when there are none."""
    jobs = plan.models.values() if isinstance(plan, PPOEstimate) else [plan.job]  # PPO's models each have a layout
    nodes = max(
        (
            ring_ranks(plan.device, job.tensor_size, job.data_size)[1]
            for job in jobs
            if job.config.parallel.zero_stage == 3
        ),
        default=1,
    )
    if nodes == 1:
        return []
    return [
        f"ZeRO-3 over {nodes} nodes: time, MFU, days and cost are NOT TRUSTWORTHY, far too optimistic compared with"
        " published runs (docs/benchmarks/published_runs.md)"
    ]
