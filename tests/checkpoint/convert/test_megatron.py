"""Checkpoints of Megatron-LM: read from every layout, written so that Megatron-Core's own readers take them."""

import argparse
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from dist import run_distributed
from tqdm import tqdm

from megagpt.checkpoint.convert import megatron
from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.convert.common import LazySource, parameters
from megagpt.checkpoint.convert.families.base import effective
from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.errors import CheckpointError

GPT3 = ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=4, sequence_length=16, vocab_size=100)
MODERN = dataclasses.replace(
    GPT3,
    num_query_groups=2,
    vocab_size=250,
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
    qk_layernorm=True,
)
OPTIONS = dataclasses.replace(
    MODERN, head_dim=16, rotary_fraction=0.5, qkv_bias=True, zero_centered_norm=True, activation="squared_relu"
)
MODELS = {"gpt3": GPT3, "modern": MODERN, "options": OPTIONS, "four": dataclasses.replace(MODERN, num_query_groups=4)}
LAYOUTS = [
    ("gpt3", 2, 1, 1),
    ("modern", 2, 1, 1),
    ("options", 2, 1, 1),
    ("gpt3", 1, 2, 1),
    ("modern", 1, 2, 1),
    ("gpt3", 1, 2, 2),
    ("gpt3", 4, 1, 1),
    ("four", 4, 1, 1),
    ("gpt3", 2, 2, 1),
    ("modern", 2, 2, 1),
]
"""Model, tensor and pipeline parallel size, and chunks of an interleaved pipeline."""


def weights(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Random tensors for all of a model's parameters, biases and norms included; padding rows are zeros."""
    draw = torch.Generator().manual_seed(0)
    found = {name: torch.randn(shape, generator=draw) for name, shape in parameters(model).items()}
    for name in {"embedding.word_embeddings.weight", "output_layer.weight"} & found.keys():
        found[name][model.vocab_size :] = 0
    return found


def source_of(model: ModelConfig, step: int = 7) -> LazySource:
    tensors = {f"model/{name}": tensor for name, tensor in weights(model).items()}
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    readers = {name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}
    return LazySource(Path("memory"), "megagpt", model, step, infos, readers)


def megatron_arguments(model: ModelConfig, tensor: int, pipeline: int) -> argparse.Namespace:
    """As Megatron-LM's command line would have them."""
    return argparse.Namespace(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.ffn_size,
        group_query_attention=model.num_query_groups is not None,
        num_query_groups=model.query_groups,
        kv_channels=model.head_dim,
        rotary_percent=model.rotary_fraction,
        apply_layernorm_1p=model.zero_centered_norm,
        squared_relu=model.activation == "squared_relu",
        add_qkv_bias=model.has_qkv_bias,
        max_position_embeddings=model.sequence_length,
        vocab_size=model.vocab_size,
        padded_vocab_size=model.padded_vocab_size,
        position_embedding_type="rope" if model.position_embedding == "rope" else "learned_absolute",
        normalization="RMSNorm" if model.normalization == "rmsnorm" else "LayerNorm",
        swiglu=model.activation == "swiglu",
        add_bias_linear=model.bias,
        untie_embeddings_and_output_weights=not model.tie_embeddings,
        qk_layernorm=model.qk_layernorm,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
    )


def save_ranks(folder: str, layouts: list[tuple[str, int, int, int]]) -> None:
    """Every rank builds its part of Megatron-Core's model, fills it and saves it as Megatron-LM does. Collective."""
    from megatron.core import parallel_state

    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes
    from megagpt.parallel import cpu, launch

    cpu.enable()
    for name, tensor, pipeline, virtual in layouts:
        parallel = ParallelConfig(
            tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, virtual_pipeline_size=virtual
        )
        launch.form_groups(parallel)
        launch.seed_streams(1)
        model, stage = MODELS[name], parallel_state.get_pipeline_model_parallel_rank()
        config, full, state = (
            Config(model=model, parallel=parallel, optim=OptimConfig(precision="fp32")),
            weights(model),
            {},
        )
        for chunk in range(virtual):
            first, last = stage == 0 and chunk == 0, stage == pipeline - 1 and chunk == virtual - 1
            module = GPT(config, first, last, chunk if virtual > 1 else None)
            for parameter_name, parameter, boxes in named_boxes([module]):
                data = torch.cat([box.of(full[parameter_name]).flatten() for box in boxes])
                parameter.data.copy_(data.view_as(parameter))
            state["model" if virtual == 1 else f"model{chunk}"] = module.state_dict()
        if parallel_state.get_data_parallel_rank() == 0:
            _save(Path(folder) / f"{name}-{tensor}-{pipeline}-{virtual}", state, model, tensor, pipeline)
        launch.leave_groups()


def _save(path: Path, state: dict, model: ModelConfig, tensor: int, pipeline: int) -> None:
    from megatron.core import parallel_state

    rank = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    rank += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}" if pipeline > 1 else ""
    (path / "iter_0000007" / rank).mkdir(parents=True, exist_ok=True)
    (path / "latest_checkpointed_iteration.txt").write_text("7")
    about = {"args": megatron_arguments(model, tensor, pipeline), "checkpoint_version": 3.0, "iteration": 7}
    torch.save(state | about, path / "iter_0000007" / rank / "model_optim_rng.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    run_distributed(save_ranks, 4, str(folder), LAYOUTS)
    return folder


def assert_holds(source, model: ModelConfig) -> None:
    expected = weights(model)
    assert list(source.tensors) == [f"model/{name}" for name in expected]
    for name, tensor in expected.items():
        read = source.read(f"model/{name}")
        assert source.tensors[f"model/{name}"].shape == tuple(read.shape) and read.is_contiguous()
        assert torch.equal(read, tensor), name


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_is_read(saved, layout):
    path = saved / "-".join(map(str, layout))
    assert megatron.detect(path) and megatron.detect(path / "iter_0000007") and not megatron.detect(saved)
    source = megatron.open_source(path, None)
    model = MODELS[layout[0]]
    assert (source.format, source.step) == ("megatron", 7)
    assert dataclasses.replace(source.model, name="custom", ffn_hidden_size=None) == model
    assert_holds(source, model)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_by_torch_and_by_us(tmp_path, name):
    model = MODELS[name]
    with tqdm(disable=True) as bar:
        megatron.write(source_of(model), tmp_path, bar)
    state = torch.load(tmp_path / "iter_0000007/mp_rank_00/model_optim_rng.pt", weights_only=False)
    assert state["args"].num_layers == 4 and state["checkpoint_version"] == 3.0 and state["iteration"] == 7
    for parameter, tensor in weights(model).items():
        assert torch.equal(state["model"][parameter], tensor)
    source = megatron.open_source(tmp_path, None)
    assert source.model == model and source.step == 7
    assert_holds(source, model)


@pytest.fixture
def broken(saved, tmp_path) -> Path:
    """A copy of a checkpoint of two tensor-parallel ranks, to be broken."""
    return Path(shutil.copytree(saved / "gpt3-2-1-1", tmp_path / "copy"))


def change(folder: Path, rank: str, edit) -> None:
    file = folder / "iter_0000007" / rank / "model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    edit(state)
    torch.save(state, file)


def test_padding_of_others_and_names_of_transformer_engine(broken):
    """A vocabulary padded to 104 and norms fused with linears, as other settings of Megatron-LM save them."""

    def edit(state):
        values = state["model"]
        values["embedding.word_embeddings.weight"] = whole[52 * state["rank"] : 52 * (state["rank"] + 1)].clone()
        for key in [key for key in values if "input_layernorm" in key or "pre_mlp_layernorm" in key]:
            new = key.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
            values[new.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")] = values.pop(key)
        state["args"].padded_vocab_size = 104

    whole = weights(GPT3)["embedding.word_embeddings.weight"]
    for rank in range(2):
        change(broken, f"mp_rank_0{rank}", lambda state, rank=rank: edit(state | {"rank": rank}))
    assert_holds(megatron.open_source(broken, None), GPT3)


@pytest.mark.parametrize("version", [0, 1.0, 2.0])
def test_models_from_before_megatron_core(tmp_path, version):
    """Their names, and the order of query, key and value that their version says, on two ranks."""
    heads, size = 4, 8
    for rank in range(2):
        encoder, embedding = {}, {}
        for name, tensor in weights(GPT3).items():
            if ".linear_qkv." in name:
                tensor = tensor.chunk(2)[rank].view(heads // 2, 3, size, *tensor.shape[1:])
                order = {0: (1, 0, 2), 1.0: (0, 2, 1), 2.0: (0, 1, 2)}[version]
                tensor = tensor.permute(*order, *range(3, tensor.dim())).flatten(0, 2)
            elif name.endswith(("linear_proj.weight", "linear_fc2.weight")):
                tensor = tensor.chunk(2, dim=1)[rank]
            elif ".linear_fc1." in name or "word_embeddings" in name:
                tensor = tensor.chunk(2)[rank]
            old = name.removeprefix("decoder.")
            for today, before in {
                "self_attention.linear_qkv": "attention.query_key_value",
                "self_attention.linear_proj": "attention.dense",
                "pre_mlp_layernorm": "post_attention_layernorm",
                "linear_fc1": "dense_h_to_4h",
                "linear_fc2": "dense_4h_to_h",
            }.items():
                old = old.replace(today, before)
            if name.startswith("embedding."):
                embedding[name.split(".")[1]] = {"weight": tensor.clone()}
            else:
                encoder[old] = tensor.clone()
        folder = tmp_path / "iter_0000007" / f"mp_rank_0{rank}"
        folder.mkdir(parents=True)
        state = {"model": {"language_model": {"embedding": embedding, "encoder": encoder}}, "iteration": 7}
        state |= {"args": megatron_arguments(GPT3, 2, 1)} | ({"checkpoint_version": version} if version else {})
        torch.save(state, folder / "model_optim_rng.pt")
    assert_holds(megatron.open_source(tmp_path / "iter_0000007", None), GPT3)


@pytest.mark.parametrize("name", MODELS)
def test_exports_are_described_by_their_arguments(name, tmp_path):
    """As Megatron-LM reads them, which does not look at the file beside them."""
    megatron.write(source_of(MODELS[name]), tmp_path, tqdm(disable=True))
    (tmp_path / "iter_0000007/megagpt.json").unlink()
    found = megatron.open_source(tmp_path, None)
    assert effective(found.model) == effective(MODELS[name])
    assert_holds(found, found.model)


NORM, PROJ = "decoder.final_layernorm.weight", "decoder.layers.1.self_attention.linear_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state["model"].pop(NORM), f"{NORM} is held by 1 of 2"),
        (lambda state: state["model"].update(surprise=torch.ones(2)), "surprise is held by 1 of 2"),
        (lambda state: state["model"].update({NORM: torch.ones(3)}), f"{NORM} has different shapes"),
        (lambda state: state["model"].update({NORM: torch.ones(32).half()}), f"{NORM} has different shapes or dtypes"),
        (lambda state: state.update(args=argparse.Namespace(tensor_model_parallel_size=4)), None),
        (lambda state: state["args"].__dict__.update(num_experts=8), "mixture of experts"),
        (lambda state: state["args"].__dict__.update(kv_channels=5), "has shape"),
        (lambda state: state["args"].__dict__.update(kv_channels="wide"), "do not describe a model: model.head_dim"),
        (lambda state: state["args"].__dict__.update(hidden_size=64), "has shape"),
        (lambda state: state["args"].__dict__.update(num_layers=5), "decoder.layers.4.*is missing"),
        (lambda state: state["args"].__dict__.update(normalization="Other"), "normalization is 'Other'"),
        (lambda state: state["args"].__dict__.update(hidden_size="big"), "do not describe a model"),
        (lambda state: state.pop("args"), "holds no arguments"),
        (lambda state: state.pop("model"), "holds no model"),
    ],
)
def test_bad_files_are_refused(broken, edit, message):
    change(broken, "mp_rank_00", edit)
    with pytest.raises(CheckpointError, match=message):
        megatron.open_source(broken, None)


def test_ranks_that_are_missing_or_disagree_are_refused(broken):
    change(broken, "mp_rank_01", lambda state: state["model"][f"{PROJ}.bias"].add_(1))
    with pytest.raises(CheckpointError, match=f"{PROJ}.bias differs between tensor-parallel ranks"):
        megatron.open_source(broken, None).read(f"model/{PROJ}.bias")
    shutil.rmtree(broken / "iter_0000007/mp_rank_01")
    with pytest.raises(CheckpointError, match="tensor_model_parallel_size=2"):
        megatron.open_source(broken, None)
    (broken / "latest_checkpointed_iteration.txt").write_text("../../etc")
    with pytest.raises(CheckpointError, match="not an iteration"):
        megatron.open_source(broken, None)
