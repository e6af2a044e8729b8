"""Megatron-Core's sharded checkpoints: what its own code saves is read, what we write its own code loads."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from dist import run_distributed
from tqdm import tqdm

from megagpt.checkpoint.convert import megatron_dist
from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.errors import CheckpointError
from tests.checkpoint.convert.test_megatron import MODELS, assert_holds, megatron_arguments, source_of, weights

LAYOUTS = [("gpt3", 1, 2), ("modern", 2, 1), ("gpt3", 2, 1), ("modern", 1, 2), ("modern", 1, 1)]
"""Model, tensor and pipeline parallel size of what Megatron-Core saves."""


def build(model: ModelConfig, parallel: ParallelConfig, whole: dict[str, torch.Tensor] | None):
    """This rank's part of Megatron-Core's model, of its own layers, filled with `whole`."""
    from megatron.core import parallel_state as state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    from megagpt.model.gpt import NORMALIZATION, POSITION_EMBEDDING, transformer_config
    from megagpt.model.parameters import named_boxes

    config = Config(model=model, parallel=parallel, optim=OptimConfig(precision="fp32"))
    settings = dataclasses.replace(transformer_config(config), perform_initialization=True)
    module = GPTModel(
        settings,
        get_gpt_layer_local_spec(normalization=NORMALIZATION[model.normalization], qk_layernorm=model.qk_layernorm),
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.sequence_length,
        pre_process=state.is_pipeline_first_stage(),
        post_process=state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=model.tie_embeddings,
        position_embedding_type=POSITION_EMBEDDING[model.position_embedding],
    )
    for name, parameter in module.named_parameters():
        if name.endswith("linear_fc1.weight") and model.activation == "swiglu":
            parameter.partition_stride = 2  # gate and value are cut apart, which Megatron-Core's layer does not note
    for name, parameter, boxes in named_boxes([module]):
        name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
        if whole is None:
            parameter.data.fill_(float("nan"))
        else:
            parameter.data.copy_(torch.cat([box.of(whole[name]).flatten() for box in boxes]).view_as(parameter))
    return module


def save_and_load(folder: str, written: dict[str, str]) -> list[str]:
    """Saves every layout, and loads in two layouts what we wrote; returns what came out wrong. Collective."""
    from megatron.core import dist_checkpointing, parallel_state

    from megagpt.model.parameters import named_boxes
    from megagpt.parallel import cpu, launch

    cpu.enable()
    wrong = []
    for name, tensor, pipeline in LAYOUTS:
        parallel = ParallelConfig(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
        launch.form_groups(parallel)
        launch.seed_streams(1)
        module, model = build(MODELS[name], parallel, weights(MODELS[name])), MODELS[name]
        path = Path(folder) / f"{name}-{tensor}-{pipeline}"
        if torch.distributed.get_rank() == 0:
            path.mkdir()
        torch.distributed.barrier()
        common = {"args": megatron_arguments(model, tensor, pipeline), "iteration": 7, "checkpoint_version": 3.0}
        state = module.sharded_state_dict(metadata={"dp_cp_group": parallel_state.get_data_parallel_group()})
        dist_checkpointing.save(state | common, str(path))
        empty = build(MODELS[name], parallel, None)
        state = empty.sharded_state_dict(metadata={"dp_cp_group": parallel_state.get_data_parallel_group()})
        loaded = dist_checkpointing.load(state, written[name])
        empty.load_state_dict({key: value for key, value in loaded.items() if key in state}, strict=False)
        ours = named_boxes([empty])
        theirs = named_boxes([module])
        wrong += [f"{path.name} {a[0]}" for a, b in zip(ours, theirs, strict=True) if not torch.equal(a[1], b[1])]
        launch.leave_groups()
    return wrong


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, str]:
    """What we write of every model."""
    folders = {}
    for name in ("gpt3", "modern"):
        folder = tmp_path_factory.mktemp(name)
        with tqdm(disable=True) as bar:
            megatron_dist.write(source_of(MODELS[name]), folder, bar)
        folders[name] = str(folder / "iter_0000007")
    return folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory, written) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("megatron_dist")
    return folder, run_distributed(save_and_load, 2, str(folder), written)


def test_megatron_core_loads_what_is_written(saved):
    assert saved[1] == [[], []]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_megatron_core_saves_is_read(saved, layout):
    path = saved[0] / "-".join(map(str, layout))
    assert megatron_dist.detect(path)
    source = megatron_dist.open_source(path, None)
    model = MODELS[layout[0]]
    assert (source.format, source.step) == ("megatron-dist", 7)
    assert dataclasses.replace(source.model, name="custom", ffn_hidden_size=None) == model
    assert_holds(source, model)


@pytest.mark.parametrize("name", ["gpt3", "modern"])
def test_what_is_written_is_read(written, name):
    root = Path(written[name]).parent
    assert megatron_dist.detect(root)
    source = megatron_dist.open_source(root, None)
    assert source.model == MODELS[name] and source.step == 7
    assert_holds(source, MODELS[name])


@pytest.fixture
def broken(written, tmp_path) -> Path:
    """A copy of a checkpoint, to be broken."""
    return Path(shutil.copytree(written["gpt3"], tmp_path / "copy"))


def edit(folder: Path, change) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def of(metadata, name: str):
    (found,) = [key for key in metadata.storage_data if key.fqn == name]
    return metadata.storage_data, found


def move(metadata, **values) -> None:
    storage, key = of(metadata, "decoder.final_layernorm.weight")
    storage[key] = dataclasses.replace(storage[key], **values)


def drop_layer(metadata) -> None:
    name = "decoder.layers.mlp.linear_fc1.weight"
    key = next(key for key in metadata.storage_data if key.fqn == name and key.offset[0] == 2)
    del metadata.storage_data[key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: move(metadata, relative_path="../../secret"), "'../../secret', which is not a file"),
        (lambda metadata: move(metadata, relative_path="/etc/passwd"), "which is not a file"),
        (lambda metadata: move(metadata, offset=1 << 40), "the file was cut"),
        (lambda metadata: move(metadata, relative_path="__0_0.distcp"), r"__0_0\.distcp"),
        (drop_layer, r"decoder\.layers\.mlp\.linear_fc1\.weight: 4096 of its 16384 elements are missing"),
        (lambda metadata: metadata.state_dict_metadata.update(planner=1), None),
        (lambda metadata: metadata.storage_data.clear(), "is missing"),
    ],
)
def test_bad_metadata_is_refused(broken, change, message):
    edit(broken, change)
    if message is None:
        assert_holds(megatron_dist.open_source(broken, None), MODELS["gpt3"])
        return
    with pytest.raises(CheckpointError, match=message):
        megatron_dist.open_source(broken, None).read("model/decoder.final_layernorm.weight")


def test_code_in_metadata_is_refused(broken):
    (broken / ".metadata").write_bytes(b"\x80\x04cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        megatron_dist.open_source(broken, None)
