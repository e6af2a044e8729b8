"""Formats of parallel trainers hold one tensor at a time while they write, and let go of it when it was read."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from megagpt.checkpoint.convert import deepspeed, deepspeed_universal, megatron, megatron_dist
from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.convert.common import LazySource, parameters
from megagpt.config.schema import ModelConfig

MODEL = ModelConfig(num_layers=3, hidden_size=32, num_attention_heads=4, sequence_length=16, vocab_size=100)


@pytest.mark.parametrize("form", [megatron, megatron_dist, deepspeed, deepspeed_universal], ids=lambda form: form.NAME)
def test_writing_holds_one_tensor_and_the_bar_counts_all(tmp_path, form):
    alive: list[weakref.ref] = []
    most = 0
    infos = {f"model/{name}": TensorInfo(shape, torch.float32) for name, shape in parameters(MODEL).items()}

    def read(info: TensorInfo) -> torch.Tensor:
        nonlocal most
        memory = np.zeros(info.shape, np.float32)
        alive.append(weakref.ref(memory))
        most = max(most, sum(reference() is not None for reference in alive))
        return torch.from_numpy(memory)

    readers = {name: lambda info=info: read(info) for name, info in infos.items()}
    with tqdm(disable=False, file=(tmp_path / "bar").open("w")) as bar:
        form.write(LazySource(Path("memory"), "megagpt", MODEL, 7, infos, readers), tmp_path, bar)
        assert bar.n >= sum(info.size for info in infos.values())
    assert len(alive) >= len(infos) and most == 1
