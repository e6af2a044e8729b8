"""The engine on Megatron-Core: tensor, sequence, pipeline, interleaved pipeline and data parallelism, with gradients in
fp32 buffers and, at ZeRO stage 1, Megatron's distributed optimizer."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core import optimizer as optimizers
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, distrib_optimizer, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.model.gpt import GPT
from megagpt.model.parameters import Box, boxes_of, named_boxes
from megagpt.parallel import cpu
from megagpt.parallel.adam import choose_adam, prepare, scale_gradients, set_step
from megagpt.parallel.common import MOMENTS, MOMENTUM, means, random_state, set_random_state, split, sums_of
from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.engine import Objective, StepResult
from megagpt.parallel.muon import Matrix, Muon, is_hidden_matrix
from megagpt.parallel.shards import Shard


def set_pipeline_messages(settings: ModelParallelConfig, device: torch.device, virtual_size: int) -> None:
    """Choose how pipeline stages communicate: an interleaved schedule overlaps messages with other work."""
    settings.overlap_p2p_comm = virtual_size > 1
    settings.batch_p2p_comm = device.type == "cuda" and virtual_size == 1  # gloo has no batched calls
    settings.batch_p2p_sync = False  # True synchronises the device after every message, for old versions of PyTorch


class MegatronEngine:
    """Implements `megagpt.parallel.engine.Engine`. Call `launch.initialize` first."""

    def __init__(self, config: Config, objective: Objective, training: bool = True) -> None:
        """Build this rank's part of the model and, if `training`, its gradient buffers and optimizer."""
        self.config, self.objective = config, objective
        self.wishes_stop: Callable[[], bool] = lambda: False
        self.dims = ParallelDims.of(config.parallel, dist.get_rank(), dist.get_world_size())
        self.device = cpu.device()
        self.dtype = torch.bfloat16 if config.optim.precision == "bf16" else torch.float32
        # A single replica has nothing to shard, but would still pay for the collectives.
        self.shards_optimizer = config.parallel.zero_stage == 1 and self.dims.data_size > 1
        self.overlaps_gathering = self.shards_optimizer and config.parallel.overlap_param_gather
        self._modules = [self._build(stage) for stage in range(self.dims.virtual_size)]
        self.chunks: list[torch.nn.Module] = self._modules
        self._incomplete = False  # whether parameters that other replicas updated must still be gathered
        self.optimizer = None
        if training:
            self.chunks = [self._with_gradients(index, module) for index, module in enumerate(self._modules)]
            if config.parallel.overlaps_reduction:  # then only the last micro-batch's backward pass communicates
                no_sync = [chunk.no_sync for chunk in self.chunks]
                self._modules[0].config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
            self.optimizer = self._build_optimizer()
            self._incomplete = self.overlaps_gathering
            self._gather()  # otherwise Megatron-Core would do it in the first pass of any kind
        self.schedule = get_forward_backward_func()

    @property
    def modules(self) -> list[torch.nn.Module]:
        """This rank's chunks of the model, in order, with the updates of all replicas. Collective over replicas."""
        self._gather()
        return self._modules

    def _gather(self) -> None:
        """Gather updated parameters now, if the next training step's forward pass would otherwise gather them."""
        if self._incomplete:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)
            self._incomplete = False

    def _build(self, virtual_stage: int) -> torch.nn.Module:
        last = self.dims.virtual_size - 1
        module = GPT(
            self.config,
            pre_process=self.dims.is_first_stage and virtual_stage == 0,
            post_process=self.dims.is_last_stage and virtual_stage == last,
            vp_stage=virtual_stage if last else None,
        )
        settings = module.config
        settings.calculate_per_token_loss = True
        settings.finalize_model_grads_func = finalize_model_grads
        set_pipeline_messages(settings, self.device, self.dims.virtual_size)
        return module.to(self.device, self.dtype)

    def _with_gradients(self, index: int, module: torch.nn.Module) -> DistributedDataParallel:
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=self.shards_optimizer,
            overlap_grad_reduce=self.config.parallel.overlaps_reduction and self.dims.data_size > 1,
            overlap_param_gather=self.overlaps_gathering,
        )
        return DistributedDataParallel(module.config, ddp_config, module, disable_bucketing=index > 0)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        optim = self.config.optim
        chosen = choose_adam("torch" if optim.optimizer == "muon" else optim.fused, self.device)
        # By default Megatron-Core uses Transformer Engine's or Apex's AdamW if they can be imported.
        optimizers.USING_PYTORCH_OPTIMIZER, optimizers.Adam = chosen is torch.optim.AdamW, chosen
        distrib_optimizer.Adam = chosen  # the distributed optimizer accepts only this class
        optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=optim.lr,
                adam_beta1=optim.beta1,
                adam_beta2=optim.beta2,
                adam_eps=optim.eps,
                weight_decay=optim.weight_decay,
                clip_grad=optim.clip_grad,
                bf16=optim.precision == "bf16",
                params_dtype=self.dtype,
                use_distributed_optimizer=self.shards_optimizer,
            ),
            self.chunks,
            use_gloo_process_groups=False,
        )
        for group in optimizer.param_groups:
            group["weight_decay"] = optim.weight_decay * group["wd_mult"]
        (inner,) = optimizer.chained_optimizers
        if not inner.is_stub_optimizer:
            if optim.optimizer == "muon":
                inner.optimizer = self._muon(inner)
            prepare(inner.optimizer)
        return optimizer

    def _muon(self, inner: MegatronOptimizer) -> Muon:
        """Muon in place of Adam. Replicas that shard the optimizer's state also divide its matrices among them."""
        matrices, tp_group = [], self._modules[0].tp_group
        for name, parameter, _ in named_boxes(self._modules):
            if is_hidden_matrix(name):
                boxes = [boxes_of(parameter, tp_group.size(), rank) for rank in range(tp_group.size())]
                main, span = _held(inner, parameter)
                matrices.append(Matrix(name, boxes, main, span or (0, parameter.numel())))
        group = parallel_state.get_tensor_and_data_parallel_group() if self.shards_optimizer else tp_group
        return Muon(inner.optimizer, matrices, group, tp_group.rank(), self.config, self.device)

    def train_step(self, batches: Iterator[Batch], num_micro_batches: int, lr: float) -> StepResult:
        """See `Engine.train_step`."""
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss, count, metrics, stop = self._run(batches, num_micro_batches, forward_only=False)
        self._incomplete = self.overlaps_gathering  # Megatron-Core gathers in the next step's forward pass
        self.optimizer.prepare_grads()
        grad_norm = self._grad_norm()
        applied = math.isfinite(loss) and math.isfinite(grad_norm)
        if applied:
            self._update(grad_norm, lr)
        return StepResult(loss, count, grad_norm, applied, metrics, stop)

    @torch.no_grad()
    def _grad_norm(self) -> float:
        """Norm of the whole model's gradient. Without Apex, Megatron-Core's function synchronises for every tensor."""
        (inner,) = self.optimizer.chained_optimizers
        square = torch.zeros((), device=self.device)
        if grads := self._own_gradients(inner):
            square += torch.stack(torch._foreach_norm(grads)).square().sum()
        dist.all_reduce(square, group=inner.get_grad_stats_parallel_group())
        return math.sqrt(square.item())

    def _own_gradients(self, inner: MegatronOptimizer) -> list[torch.Tensor]:
        """Gradients that this rank adds to the norm; only one rank adds a gradient that several ranks hold."""
        tp_group = self._modules[0].tp_group
        return [
            parameter.grad
            for parameter in inner.get_parameters()
            if parameter.grad is not None
            and param_is_not_shared(parameter)
            and param_is_not_tensor_parallel_duplicate(parameter, tp_group)
        ]

    def _update(self, grad_norm: float, lr: float) -> None:
        (inner,) = self.optimizer.chained_optimizers
        for group in inner.param_groups:
            group["lr"] = lr
        if self.config.optim.clip_grad > 0 and not inner.is_stub_optimizer:
            excess = max(1.0, (grad_norm + 1e-6) / self.config.optim.clip_grad)
            scale_gradients(inner.optimizer, excess, self.device)
        inner.step_with_ready_grads()

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], num_micro_batches: int) -> StepResult:
        """See `Engine.evaluate`."""
        self._gather()
        for chunk in self.chunks:
            chunk.eval()
        loss, count, metrics, stop = self._run(batches, num_micro_batches, forward_only=True)
        return StepResult(loss, count, 0.0, False, metrics, stop)

    def _run(
        self, batches: Iterator[Batch], num_micro_batches: int, forward_only: bool
    ) -> tuple[float, int, dict, bool]:
        """Pass micro-batches through the pipeline; returns the result of `means` over all ranks."""
        sums = self._pass(self._forward_step, batches, num_micro_batches, forward_only)
        names, counts_here = self.objective.metric_names, self.dims.tensor_rank == 0
        return means(sums, names, self.device, counts_here, self.wishes_stop())

    @torch.no_grad()
    def outputs(self, batches: Iterator[Batch], num_micro_batches: int, training: bool = False) -> list[torch.Tensor]:
        """See `Engine.outputs`."""
        self._gather()
        for chunk in self.chunks:
            chunk.train(training)
        outputs = self._pass(self._output_step, batches, num_micro_batches, forward_only=True)
        if self.dims.pipeline_size == 1:
            return outputs
        group, last = self._modules[0].pg_collection.pp, self.dims.pipeline_size - 1
        shape = torch.tensor(outputs[0].shape if outputs else (0, 0), device=self.device)
        dist.broadcast(shape, group=group, group_src=last)
        stacked = torch.empty(num_micro_batches, *shape.tolist(), device=self.device)
        if outputs:
            torch.stack(outputs, out=stacked)
        dist.broadcast(stacked, group=group, group_src=last)
        return list(stacked)

    def _pass(self, step: Callable, batches: Iterator[Batch], count: int, forward_only: bool) -> list:
        """Pass `count` micro-batches through the pipeline; returns the results of `step` on the last stage, else [].

        With several stages all micro-batches must have the same shape.
        """
        first = next(batches)
        batches, virtual = itertools.chain((first,), batches), self.dims.virtual_size
        return self.schedule(
            forward_step_func=step,
            data_iterator=list(itertools.tee(batches, virtual)) if virtual > 1 else batches,
            model=self.chunks,
            num_microbatches=count,
            seq_length=first.tokens.shape[1],
            micro_batch_size=first.tokens.shape[0],
            forward_only=forward_only,
        )

    def _output_step(self, batches: Iterator[Batch], model: torch.nn.Module) -> tuple:
        return self.objective.forward(model, next(batches).to(self.device)), None

    def _forward_step(self, batches: Iterator[Batch], model: torch.nn.Module) -> tuple:
        batch = next(batches).to(self.device)
        return self.objective.forward(model, batch), partial(self._loss, batch)

    def _loss(self, batch: Batch, output: torch.Tensor) -> tuple:
        loss, count, metrics = self.objective.loss(output, batch)
        return loss, count.int(), sums_of(loss, count, metrics)

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """See `Engine.shards`. Names are `model/...`, `optimizer/{exp_avg,exp_avg_sq,master}/...`."""
        (inner,) = self.optimizer.chained_optimizers if self.optimizer else (None,)
        for index, (name, parameter, boxes) in enumerate(named_boxes(self.modules)):
            sharded, copy = getattr(parameter, "tensor_model_parallel", False), getattr(parameter, "shared", False)
            if for_saving and (copy or (not sharded and self.dims.tensor_rank > 0)):
                continue  # another rank has the same values and saves them
            # Replicas have the same values and take turns in saving them.
            ours = not for_saving or index % self.dims.data_size == self.dims.data_rank
            if ours:
                yield from split(f"model/{name}", parameter.detach(), None, boxes)
            if inner is not None and (ours or isinstance(inner, DistributedOptimizer)):
                yield from self._optimizer_shards(inner, name, parameter, boxes)

    def _optimizer_shards(
        self, inner: MegatronOptimizer, name: str, parameter: torch.nn.Parameter, boxes: list[Box]
    ) -> Iterator[Shard]:
        main, span = _held(inner, parameter)
        if main is None:
            return  # other replicas hold all of its state
        held = inner.optimizer.state[main]
        state = {key: held[key] for key in (*MOMENTS, MOMENTUM) if key in held}
        if self.dtype != torch.float32:
            state["master"] = main.detach()
        for key, value in state.items():
            yield from split(f"optimizer/{key}/{name}", value, span, boxes)

    def post_load(self, optimizer_step: int) -> None:
        """See `Engine.post_load`."""
        if self.optimizer is None:
            return
        if optimizer_step == 0:
            self.optimizer.reload_model_params()
        (inner,) = self.optimizer.chained_optimizers
        if not inner.is_stub_optimizer:
            set_step(inner.optimizer, optimizer_step)

    def random_state(self) -> dict[str, torch.Tensor]:
        """See `Engine.random_state`."""
        return random_state(self.device)

    def set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        """See `Engine.set_random_state`."""
        set_random_state(self.device, state)


def _held(
    inner: MegatronOptimizer, parameter: torch.nn.Parameter
) -> tuple[torch.Tensor | None, tuple[int, int] | None]:
    """The fp32 tensor that this rank's optimizer updates for a parameter, and the range of elements that it covers.

    The range is None for the whole parameter. The result is (None, (0, 0)) if other replicas hold all of it.
    """
    if not isinstance(inner, DistributedOptimizer):
        return getattr(parameter, "main_param", parameter), None
    if parameter not in inner.model_param_group_index_map:
        return None, (0, 0)
    group, order = inner.model_param_group_index_map[parameter]
    held = inner._get_model_param_range_map(parameter)["param"]
    return inner.optimizer.param_groups[group]["params"][order], (held.start, held.end)
