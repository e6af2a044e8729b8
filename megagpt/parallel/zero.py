"""The engine on DeepSpeed: ZeRO stages 1 to 3 (Rajbhandari et al., arXiv 1910.02054) over data parallelism, with
offload, combined with the tensor and sequence parallelism of Megatron-Core's layers."""

import contextlib
import io
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.utils.cpp_extension import get_default_build_root

from megagpt import env
from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.errors import ConfigError, DistributedError
from megagpt.model.gpt import GPT
from megagpt.model.parameters import named_boxes
from megagpt.parallel import cpu
from megagpt.parallel.common import MOMENTS, means, random_state, set_random_state, split, sums_of
from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.engine import Objective, StepResult
from megagpt.parallel.shards import Shard
from megagpt.parallel.swap import mapped, swap_folder

BUCKETS = 8  # least number of messages for the gradients, so that sending overlaps with the backward pass
LARGEST_BUCKET = 200_000_000  # elements; a bucket needs memory in addition to the tensors that ZeRO divides
EXTENSIONS = ("deepspeed_shm_comm", "async_io")  # extensions that DeepSpeed compiles at their first use
LONGEST_BUILD = 1800.0  # seconds after which the lock of a build counts as abandoned
SWAP_GROUP = 100_000_000  # elements updated at a time with optimizer state on disk; memory holds four such buffers


class DeepSpeedEngine:
    """Implements `megagpt.parallel.engine.Engine`. Call `launch.initialize` first.

    DeepSpeed averages gradients over the data-parallel ranks. The backward pass uses the sum of the losses; its
    divisor is known only after the last micro-batch, so DeepSpeed gets it as a loss scale before the update.
    """

    def __init__(self, config: Config, objective: Objective) -> None:
        """Build the model, and shard its parameters, gradients and optimizer state according to the ZeRO stage.

        Raises ConfigError when DeepSpeed, a library that it compiles with, or space on the disk is missing;
        DistributedError when a killed build has left its lock.
        """
        self.config, self.objective = config, objective
        self.wishes_stop: Callable[[], bool] = lambda: False
        self.dims = ParallelDims.of(config.parallel, dist.get_rank(), dist.get_world_size())
        self.device = cpu.device()
        module = GPT(config)
        parameters = [] if config.parallel.zero_stage == 3 else module.parameters()  # stage 3 moves them one by one
        for tensor in (*module.buffers(), *parameters):
            tensor.data = tensor.data.to(self.device)
        self.modules = [module]
        self.parameters = list(named_boxes(self.modules))  # before stage 3 changes the parameters' shapes
        self._sum_replicated_gradients()
        self.engine = _initialize(module, self._optimizer(), self._settings())
        self.zero = self.engine.optimizer
        self.partitions_parameters = config.parallel.zero_stage == 3
        self.masters = _masters(self.zero)
        self._prepare_adam()

    def _settings(self) -> dict[str, Any]:
        """DeepSpeed's settings, with a folder for offload to NVMe if that is used."""
        parallel, sizes = self.config.parallel, [parameter.numel() for _, parameter, _ in self.parameters]
        settings = deepspeed_config(self.config, sizes, self.dims.data_size)
        bytes_each = 16 * (parallel.offload_optimizer == "nvme")  # master, two moments and gradient, in fp32
        bytes_each += self.modules[0].config.params_dtype.itemsize * (parallel.offload_parameters == "nvme")
        if bytes_each:
            folder = swap_folder(self.config, dist.get_rank(), self, sum(sizes) // self.dims.data_size * bytes_each)
            for name in ("offload_optimizer", "offload_param"):
                settings["zero_optimization"].get(name, {})["nvme_path"] = str(folder)
        return settings

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW with the same parameter groups as Megatron-Core: no weight decay for biases and norms."""
        optim = self.config.optim
        decayed, others = [], []
        for name, parameter, _ in self.parameters:
            (others if name.endswith(".bias") or parameter.dim() == 1 else decayed).append(parameter)
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        betas = (optim.beta1, optim.beta2)
        return torch.optim.AdamW(groups, optim.lr, betas, optim.eps, optim.weight_decay, fused=True)

    def _sum_replicated_gradients(self) -> None:
        """Sum over tensor-parallel ranks the gradients of parameters that each applies to its own tokens or heads."""
        module, group = self.modules[0], self.modules[0].pg_collection.tp
        if group.size() == 1:
            return

        def summed(gradient: torch.Tensor) -> torch.Tensor:
            total = gradient.float().contiguous().clone()
            dist.all_reduce(total, group=group)
            return total.to(gradient.dtype)

        for name, parameter in module.named_parameters():
            per_head = module.config.qk_layernorm and ("q_layernorm" in name or "k_layernorm" in name)
            if per_head or (module.config.sequence_parallel and getattr(parameter, "sequence_parallel", False)):
                parameter.register_hook(summed)

    def _prepare_adam(self) -> None:
        """Create the optimizer state of every partition, so that a checkpoint can be loaded into it."""
        for group, part in enumerate(self.masters):
            if on_disk := self._on_disk(group):
                self.zero._optimizer_states_and_gradient_swap_in(group)
            self.zero.optimizer.state[part] = {
                "step": torch.zeros((), dtype=torch.float32, device=part.device),
                **{key: torch.zeros_like(part) for key in MOMENTS},
            }
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_out(group)

    def _on_disk(self, group: int) -> bool:
        """Whether a group's optimizer state is on disk; DeepSpeed keeps groups under 1 MiB in memory."""
        return self.config.parallel.offload_optimizer == "nvme" and self.zero._swappable_optimizer_subgroup(group)

    def train_step(self, batches: Iterator[Batch], num_micro_batches: int, lr: float) -> StepResult:
        """See `Engine.train_step`."""
        self.engine.train()
        for group in self.zero.param_groups:
            group["lr"] = lr
        sums = []
        for index in range(num_micro_batches):
            loss, micro_sums = self._forward(next(batches))
            sums.append(micro_sums)
            if index == num_micro_batches - 1:
                mean, count, metrics, stop = self._means(sums)
                if not math.isfinite(mean):
                    loss = loss * torch.nan  # on every rank, so that DeepSpeed skips the step
            self.engine.backward(loss, scale_wrt_gas=False)
        self.divide_gradients(max(count, 1) / self.dims.data_size)
        self.engine.step()
        self.zero.custom_loss_scaler = False  # otherwise it would also scale the next losses
        grad_norm = float(self.engine.get_global_grad_norm())
        return StepResult(mean, count, grad_norm, not self.zero.overflow, metrics, stop)

    def divide_gradients(self, divisor: float) -> None:
        """Divide the accumulated gradients by `divisor`. Call it after the last backward pass, before the update."""
        if hasattr(self.zero, "override_loss_scale"):
            self.zero.override_loss_scale(divisor)
        else:  # DeepSpeed's optimizer for stage 1 in bf16
            torch._foreach_div_(self.zero.fp32_groups_gradients_flat, divisor)

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], num_micro_batches: int) -> StepResult:
        """See `Engine.evaluate`."""
        self.engine.eval()
        sums = [self._forward(next(batches))[1] for _ in range(num_micro_batches)]
        mean, count, metrics, stop = self._means(sums)
        return StepResult(mean, count, 0.0, False, metrics, stop)

    @torch.no_grad()
    def outputs(self, batches: Iterator[Batch], num_micro_batches: int, training: bool = False) -> list[torch.Tensor]:
        """See `Engine.outputs`."""
        self.engine.train(training)
        return [self.objective.forward(self.engine, next(batches).to(self.device)) for _ in range(num_micro_batches)]

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        batch = batch.to(self.device)
        loss, count, metrics = self.objective.loss(self.objective.forward(self.engine, batch), batch)
        return loss, sums_of(loss, count, metrics)

    def _means(self, sums: list[torch.Tensor]) -> tuple[float, int, dict[str, float], bool]:
        names, counts_here = self.objective.metric_names, self.dims.tensor_rank == 0
        return means(sums, names, self.device, counts_here, self.wishes_stop())

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """See `Engine.shards`. Names are `model/...`, `optimizer/{exp_avg,exp_avg_sq,master}/...`."""
        bf16 = self.config.optim.precision == "bf16"
        for index, (name, parameter, boxes) in enumerate(self.parameters):
            replicated = not getattr(parameter, "tensor_model_parallel", False)
            if for_saving and replicated and self.dims.tensor_rank > 0:
                continue  # another rank has the same values and saves them
            start, stop = span = self._span(parameter)
            if self.partitions_parameters:
                yield from split(f"model/{name}", _partition(parameter)[: stop - start], span, boxes)
            elif not for_saving or index % self.dims.data_size == self.dims.data_rank:  # replicas take turns
                yield from split(f"model/{name}", parameter.detach(), None, boxes)
            if start < stop:
                for key in (*MOMENTS, "master") if bf16 else MOMENTS:
                    held = self._held(parameter, key)[: stop - start]
                    yield from split(f"optimizer/{key}/{name}", held, span, boxes)

    def _held(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        """This rank's elements of a parameter's fp32 master or of one of its `MOMENTS`, 1-D, in place."""
        if self.partitions_parameters:
            group, start, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
        else:
            group, address = parameter._hp_mapping.param_group_index, parameter._hp_mapping.hp_fragment_address
            start, size = address.start, address.numel
        flat = self.masters[group]
        values = flat if key == "master" else self.zero.optimizer.state[flat][key]
        if self._on_disk(group):
            files = self.zero.optimizer_swapper.swap_params_info[flat.ds_id].tensors
            path = next(file.swap_path for file in files if file.compute_tensor is values)
            values = mapped(path, start + size, values.dtype)
        return values.detach()[start : start + size]

    def _span(self, parameter: torch.nn.Parameter) -> tuple[int, int]:
        """Range of a parameter's elements whose optimizer state is on this rank; empty if there are none."""
        if self.partitions_parameters:
            start = self.dims.data_rank * parameter.ds_tensor.ds_numel
            return min(start, parameter.ds_numel), min(start + parameter.ds_tensor.ds_numel, parameter.ds_numel)
        if parameter._hp_mapping is None:
            return 0, 0
        address = parameter._hp_mapping.lp_fragment_address
        return address.start, address.start + address.numel

    @torch.no_grad()
    def post_load(self, optimizer_step: int) -> None:
        """See `Engine.post_load`."""
        if self.partitions_parameters:  # a forward pass may have left old values gathered
            self.zero.empty_partition_cache()
        if optimizer_step == 0 or self.config.optim.precision == "fp32":
            for _, parameter, _ in self.parameters:
                start, stop = self._span(parameter)
                if start < stop:
                    held = _partition(parameter) if self.partitions_parameters else parameter.view(-1)[start:stop]
                    self._held(parameter, "master")[: stop - start].copy_(held[: stop - start])
        for state in self.zero.optimizer.state.values():
            state["step"].fill_(optimizer_step)

    def random_state(self) -> dict[str, torch.Tensor]:
        """See `Engine.random_state`."""
        return random_state(self.device)

    def set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        """See `Engine.set_random_state`."""
        set_random_state(self.device, state)


def _masters(zero: Any) -> list[torch.Tensor]:
    """The flat fp32 partitions that DeepSpeed's optimizer updates; their attribute's name depends on the stage."""
    names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
    return next(getattr(zero, name) for name in names if hasattr(zero, name))


def _partition(parameter: torch.nn.Parameter) -> torch.Tensor:
    """This rank's elements of a parameter that stage 3 has partitioned: 1-D, padded, a view of the storage."""
    held = parameter.ds_tensor
    if held.status.name == "NOT_AVAILABLE":
        return mapped(parameter.nvme_swapper.get_path(parameter, must_exist=True), held.ds_numel, held.dtype)
    return held.detach()


def _initialize(module: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    env.set_deepspeed_accelerator(cpu.device().type)
    try:
        import deepspeed
        from deepspeed.ops.op_builder import AsyncIOBuilder
    except ImportError as error:
        raise ConfigError(
            "parallel.engine=deepspeed needs DeepSpeed, which is not installed: pip install 'megagpt[deepspeed]', or "
            "use parallel.engine=megatron"
        ) from error
    deepspeed.utils.logger.setLevel(logging.WARNING)
    refuse_abandoned_builds(Path(env.torch_extensions_dir() or get_default_build_root()))
    offload = [settings["zero_optimization"].get(name, {}) for name in ("offload_optimizer", "offload_param")]
    if any("nvme_path" in section for section in offload) and not AsyncIOBuilder().is_compatible():
        raise ConfigError(
            "offload to nvme needs libaio with its headers, because DeepSpeed compiles an extension that uses it:"
            " install libaio-dev (Debian) or libaio-devel, or offload to the cpu"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints messages at every log level
        if settings["zero_optimization"]["stage"] == 3:  # partition first: the whole model may not fit on the device
            deepspeed.zero.Init(
                module=module,
                data_parallel_group=_Grid.get_data_parallel_group(),
                remote_device=settings["zero_optimization"].get("offload_param", {}).get("device"),
                config_dict_or_path=settings,
                dtype=module.config.params_dtype,
                mpu=_Grid,
            )
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            mpu=_Grid,
            dist_init_required=False,
            config=settings,
        )
    return engine


def refuse_abandoned_builds(root: Path) -> None:
    """Raises DistributedError for the lock of a killed build of an extension; every run would wait for it for ever."""
    for lock in (lock for name in EXTENSIONS for lock in root.glob(f"**/{name}/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > LONGEST_BUILD:
            raise DistributedError(
                f"{lock} is {age / 60:.0f} minutes old: a build of DeepSpeed's extension was killed, and every run"
                " would wait for it. Remove the file, unless something is still being built there"
            )


def deepspeed_config(config: Config, sizes: list[int], replicas: int) -> dict[str, Any]:
    """DeepSpeed's settings for `config`.

    sizes: elements of each parameter before partitioning. replicas: number of data-parallel ranks.
    """
    parallel, bf16 = config.parallel, config.optim.precision == "bf16"
    bucket = min(LARGEST_BUCKET, max(sum(sizes) // BUCKETS, 1))
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "overlap_comm": parallel.overlaps_reduction,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        # No parameter stays gathered, because loading a checkpoint fills only the partitions.
        "stage3_param_persistence_threshold": 0,
    }
    for name, where in (("optimizer", parallel.offload_optimizer), ("param", parallel.offload_parameters)):
        if where != "none":
            zero[f"offload_{name}"] = {"device": where, "pin_memory": torch.cuda.is_available()}
    if parallel.offload_optimizer == "nvme":
        zero["sub_group_size"] = SWAP_GROUP
    if parallel.offload_parameters == "nvme":
        zero["offload_param"] |= {"buffer_size": -(-max(sizes) // replicas), "max_in_cpu": 0}
    return {
        "train_micro_batch_size_per_gpu": parallel.micro_batch_size,
        "managed_gradient_accumulation": False,  # the engine calls `step` itself, so that batches can grow
        "gradient_clipping": config.optim.clip_grad,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW also runs on the CPU, and needs no compiler
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


class _Grid:
    """Megatron-Core's groups under the names that DeepSpeed expects of its `mpu`."""

    get_model_parallel_world_size = get_tensor_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_model_parallel_rank = get_tensor_model_parallel_rank = staticmethod(
        parallel_state.get_tensor_model_parallel_rank
    )
    get_model_parallel_group = get_tensor_model_parallel_group = staticmethod(
        parallel_state.get_tensor_model_parallel_group
    )
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
    get_pipeline_model_parallel_world_size = staticmethod(parallel_state.get_pipeline_model_parallel_world_size)
    get_pipeline_model_parallel_rank = staticmethod(parallel_state.get_pipeline_model_parallel_rank)
