"""Initial values, and that names, boxes, values, losses and gradients are those of one rank in every layout."""

import math
from dataclasses import replace

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig

GPT3 = ModelConfig(num_layers=4, hidden_size=64, num_attention_heads=4, sequence_length=16, vocab_size=301)
MODERN = replace(
    GPT3,
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    tie_embeddings=False,
    num_query_groups=2,
    qk_layernorm=True,
    attention_pattern=("dense", "banded"),
    attention_window=5,
)
LAYOUTS = {
    "tensor": ParallelConfig(tensor_parallel_size=2),
    "sequence": ParallelConfig(tensor_parallel_size=2, sequence_parallel=True),
    "pipeline": ParallelConfig(pipeline_parallel_size=2),
    "interleaved": ParallelConfig(pipeline_parallel_size=2, virtual_pipeline_size=2),
}


def configuration(model: ModelConfig, parallel: ParallelConfig) -> Config:
    return Config(model=model, parallel=parallel, optim=OptimConfig(precision="fp32"))


def batch(model: ModelConfig):
    tokens = torch.randint(0, model.vocab_size, (2, 17), generator=torch.Generator().manual_seed(4))
    return tokens[:, :-1], torch.arange(16).expand(2, 16), tokens[:, 1:]


def chunks_of(config: Config) -> list:
    from megatron.core import parallel_state

    from megagpt.model.gpt import GPT

    pipeline, virtual = config.parallel.pipeline_parallel_size, config.parallel.virtual_pipeline_size
    rank = parallel_state.get_pipeline_model_parallel_rank()
    return [
        GPT(
            config,
            pre_process=rank == 0 and stage == 0,
            post_process=rank == pipeline - 1 and stage == virtual - 1,
            vp_stage=stage if virtual > 1 else None,
        )
        for stage in range(virtual)
    ]


def held(chunks: list, gradients: bool = False) -> list:
    """What a rank holds: global name, box, values."""
    from megagpt.model.parameters import named_boxes

    shards = []
    for name, parameter, boxes in named_boxes(chunks):
        flat = (parameter.grad if gradients else parameter.detach()).flatten()
        for box, values in zip(boxes, flat.split([math.prod(s.shape) for s in boxes]), strict=True):
            shards.append((name, box, values.view(box.shape).clone()))
    return shards


def on_a_rank() -> dict:
    """In every layout: the initial values; where there is no pipeline, losses and gradients too."""
    from megatron.core import parallel_state

    from megagpt.parallel import launch

    seen = {}
    for kind, model in (("gpt3", GPT3), ("modern", MODERN)):
        for layout, parallel in LAYOUTS.items():
            launch.initialize(parallel, seed=0)
            chunks = chunks_of(configuration(model, parallel))
            seen[kind, layout] = {"values": held(chunks)}
            if parallel.pipeline_parallel_size == 1:
                tokens, positions, labels = batch(model)
                losses = chunks[0](tokens, positions, None, labels=labels)
                losses.mean().backward()
                seen[kind, layout] |= {"losses": losses.detach(), "gradients": held(chunks, gradients=True)}
            if layout == "tensor":
                seen[kind, "dropout"] = dropout_on_a_rank(configuration(model, parallel))
            parallel_state.destroy_model_parallel()
    return seen


def dropout_on_a_rank(config: Config) -> dict:
    """What attention makes of inputs that are equal on all ranks, and losses, both with dropout."""
    (chunk,) = chunks_of(replace(config, model=replace(config.model, attention_dropout=0.5, hidden_dropout=0.5)))
    query, key, value = torch.randn(3, 16, 2, 2, 16, generator=torch.Generator().manual_seed(0))
    attended = chunk.decoder.layers[0].self_attention.core_attention(query, key, value)
    tokens, positions, labels = batch(config.model)
    return {"attended": attended, "losses": chunk(tokens, positions, None, labels=labels).detach()}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return run_distributed(on_a_rank, 2)


def identical(name: str, copies: list[torch.Tensor]) -> torch.Tensor:
    assert all(torch.equal(copy, copies[0]) for copy in copies), name
    return copies[0]


def assemble(shards: list, combine) -> dict[str, torch.Tensor]:
    """Global tensors from the boxes that ranks hold; `combine` merges what several of them hold of one box."""
    boxes = {}
    for name, box, values in shards:
        boxes.setdefault((name, box), []).append(values)
    whole = {name: torch.full(box.global_shape, math.nan) for name, box in boxes}
    for (name, box), values in boxes.items():
        box.of(whole[name]).copy_(combine(name, values))
    return whole


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "model"), [("gpt3", GPT3), ("modern", MODERN)])
def test_layouts(two_ranks: list[dict], kind: str, model: ModelConfig, layout: str):
    chunks = chunks_of(configuration(model, ParallelConfig()))
    expected = assemble(held(chunks), identical)
    whole = assemble([shard for rank in two_ranks for shard in rank[kind, layout]["values"]], identical)
    assert whole.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(whole[name], values), name

    if "losses" not in two_ranks[0][kind, layout]:
        return
    tokens, positions, labels = batch(model)
    losses = chunks[0](tokens, positions, None, labels=labels)
    losses.mean().backward()
    for rank in two_ranks:
        torch.testing.assert_close(rank[kind, layout]["losses"], losses.detach(), atol=1e-5, rtol=1e-5)

    def reduced(name: str, copies: list[torch.Tensor]) -> torch.Tensor:
        # Ranks norm different tokens under sequence parallelism, and different heads: the engine sums these.
        after_split = "norm" in name or name.endswith(("linear_proj.bias", "linear_fc2.bias"))
        if "q_layernorm" in name or "k_layernorm" in name or (layout == "sequence" and after_split):
            return sum(copies)
        return copies[0]

    whole = assemble([shard for rank in two_ranks for shard in rank[kind, layout]["gradients"]], reduced)
    for name, gradient in assemble(held(chunks, gradients=True), identical).items():
        torch.testing.assert_close(whole[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["gpt3", "modern"])
def test_tensor_parallel_ranks_drop_heads_differently_and_the_residual_stream_alike(two_ranks: list[dict], kind: str):
    first, second = (rank[kind, "dropout"] for rank in two_ranks)
    assert not torch.equal(first["attended"], second["attended"])
    torch.testing.assert_close(first["losses"], second["losses"])


@pytest.mark.usefixtures("one_rank")
def test_initial_values():
    model = replace(GPT3, hidden_size=256, init_std=0.03)
    (chunk,) = chunks_of(configuration(model, ParallelConfig()))
    values = {name: value for name, _, value in held([chunk])}
    residual = 0.03 / math.sqrt(2 * model.num_layers)
    for name, value in values.items():
        if name.endswith(".bias"):
            assert not value.any(), name
        elif "layernorm" in name:
            assert (value == 1).all(), name
        else:
            std = residual if "linear_proj" in name or "linear_fc2" in name else 0.03
            assert value[: model.vocab_size].std().item() == pytest.approx(std, rel=0.05), name
    assert not values["embedding.word_embeddings.weight"][model.vocab_size :].any()
    layers = [values[f"decoder.layers.{layer}.mlp.linear_fc1.weight"] for layer in range(4)]
    assert all(not torch.equal(layers[0], other) for other in layers[1:])
    (other,) = chunks_of(replace(configuration(model, ParallelConfig()), seed=7))
    assert not torch.equal(other.decoder.layers[0].mlp.linear_fc1.weight, layers[0])


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("model", [GPT3, MODERN])
def test_names_and_shapes_are_those_that_megatron_gives_its_checkpoints(model: ModelConfig):
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import apply_factories

    (chunk,) = chunks_of(configuration(model, ParallelConfig()))
    state = chunk.sharded_state_dict(metadata={"non_homogeneous_layers": True})
    apply_factories(state)
    theirs = {}
    for entry in state.values():
        for tensor in entry if isinstance(entry, list) else [entry]:
            if isinstance(tensor, ShardedTensor):
                theirs[tensor.key] = tensor.global_shape
    assert theirs == {name: box.global_shape for name, box, _ in held([chunk])}
