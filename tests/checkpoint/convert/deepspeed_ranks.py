"""Checkpoints that DeepSpeed itself writes from megagpt's model on CPU ranks, and what its engine then holds."""

from pathlib import Path

import torch
import torch.distributed as dist

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    sequence_length=16,
    vocab_size=100,
    activation="swiglu",
    normalization="rmsnorm",
    position_embedding="rope",
    bias=False,
    tie_embeddings=False,
    init_std=0.1,
)
GPT3 = ModelConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, sequence_length=16, vocab_size=100, init_std=0.1
)


def write_all(folder: str, cases: dict[str, tuple[ModelConfig, int, int, str]]) -> dict[str, dict[str, torch.Tensor]]:
    """Trains and saves every case (model, ZeRO stage, TP, precision) under `folder`; returns their whole tensors.

    Collective. The tensors have the names of megagpt's checkpoints and come from DeepSpeed's own accessors; all ranks
    return them.
    """
    import deepspeed

    from megagpt.parallel import cpu, launch

    cpu.enable()
    deepspeed.init_distributed("gloo")
    held = {}
    for name, (model, stage, tensor, precision) in cases.items():
        parallel = ParallelConfig(tensor_parallel_size=tensor)
        launch.form_groups(parallel)
        launch.seed_streams(1)
        config = Config(model=model, parallel=parallel, optim=OptimConfig(precision=precision))
        held[name] = _train_and_save(Path(folder) / name, config, stage)
        launch.leave_groups()
    return held


def load_universal(folder: str, model: ModelConfig, tensor: int, stage: int) -> dict[str, torch.Tensor]:
    """What DeepSpeed's engine holds after it loaded a universal checkpoint. Collective."""
    import deepspeed

    from megagpt.parallel import cpu, launch

    cpu.enable()
    deepspeed.init_distributed("gloo")
    parallel = ParallelConfig(tensor_parallel_size=tensor)
    launch.form_groups(parallel)
    launch.seed_streams(1)
    engine, shards = _engine(Config(model=model, parallel=parallel), stage, universal=True)
    engine.load_checkpoint(folder)
    return _held(engine, shards, stage)


def _train_and_save(folder: Path, config: Config, stage: int) -> dict[str, torch.Tensor]:
    engine, shards = _engine(config, stage, universal=False)
    draw = torch.Generator().manual_seed(3)
    for _ in range(2):
        tokens = torch.randint(0, config.model.vocab_size, (1, 17), generator=draw)
        loss = engine(tokens[:, :-1], torch.arange(16)[None], None, labels=tokens[:, 1:].contiguous()).float().mean()
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(str(folder), tag="global_step2")
    return _held(engine, shards, stage)


def _engine(config: Config, stage: int, universal: bool) -> tuple:
    """DeepSpeed's engine over the model, and for every parameter its own name and its boxes, by global name."""
    import deepspeed

    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes

    module = GPT(config)
    ours = zip(module.named_parameters(), named_boxes([module]), strict=True)
    shards = {name: (own, boxes) for (own, _), (name, _, boxes) in ours}
    groups = [
        {"params": [p for p in module.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": config.optim.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "sub_group_size": 4_000},
        "checkpoint": {"load_universal": universal},
    }
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, mpu=_mpu())
    return engine, shards


def _held(engine, shards: dict, stage: int) -> dict[str, torch.Tensor]:
    if stage < 3:  # DeepSpeed links them after the first group's step, when the second group has none yet
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    return {
        f"{kind}/{name}": whole
        for name, (own, boxes) in shards.items()
        for kind, whole in _whole(engine.module.get_parameter(own), boxes).items()
    }


def _whole(parameter: torch.nn.Parameter, boxes: list) -> dict[str, torch.Tensor]:
    """A parameter's state, gathered over all ranks, by its place in a checkpoint."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = {
        "optimizer/master": safe_get_full_fp32_param(parameter),
        "optimizer/exp_avg": safe_get_full_optimizer_state(parameter, "exp_avg"),
        "optimizer/exp_avg_sq": safe_get_full_optimizer_state(parameter, "exp_avg_sq"),
    }
    whole = {}
    for kind, local in state.items():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (boxes, local))
        whole[kind] = torch.empty(boxes[0].global_shape)
        for their_boxes, data in parts:
            for box, flat in zip(their_boxes, data.flatten().chunk(len(their_boxes)), strict=True):
                box.of(whole[kind]).copy_(flat.view(box.shape))
    return whole


def _mpu() -> type:
    """Megatron-Core's groups under the names by which DeepSpeed asks for them."""
    from megatron.core import parallel_state as state

    class Mpu:
        get_model_parallel_world_size = staticmethod(state.get_tensor_model_parallel_world_size)
        get_tensor_model_parallel_world_size = get_model_parallel_world_size
        get_model_parallel_rank = staticmethod(state.get_tensor_model_parallel_rank)
        get_tensor_model_parallel_rank = get_model_parallel_rank
        get_model_parallel_group = staticmethod(state.get_tensor_model_parallel_group)
        get_tensor_model_parallel_group = get_model_parallel_group
        get_data_parallel_world_size = staticmethod(state.get_data_parallel_world_size)
        get_data_parallel_rank = staticmethod(state.get_data_parallel_rank)
        get_data_parallel_group = staticmethod(state.get_data_parallel_group)
        get_pipeline_model_parallel_world_size = staticmethod(state.get_pipeline_model_parallel_world_size)
        get_pipeline_model_parallel_rank = staticmethod(state.get_pipeline_model_parallel_rank)

    return Mpu
