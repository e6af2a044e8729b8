"""FLOPs per token against PyTorch's own counter on transformers' models, and the device table."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megagpt.config.schema import ModelConfig
from megagpt.train import flops

TINY = ModelConfig(num_layers=3, hidden_size=64, num_attention_heads=4, sequence_length=32, vocab_size=128)


def counted_per_token(network: torch.nn.Module, model: ModelConfig) -> float:
    tokens = torch.zeros(2, model.sequence_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        network(tokens).logits.sum().backward()
    return counter.get_total_flops() / tokens.numel()


def test_gpt2_as_counted_by_torch():
    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(
        GPT2Config(
            n_layer=TINY.num_layers,
            n_embd=TINY.hidden_size,
            n_head=TINY.num_attention_heads,
            n_positions=TINY.sequence_length,
            vocab_size=TINY.vocab_size,
            attn_implementation="eager",
        )
    )
    assert flops.flops_per_token(TINY) == counted_per_token(network, TINY)


def test_grouped_queries_and_swiglu_as_counted_by_torch():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = dataclasses.replace(TINY, num_query_groups=2, activation="swiglu", tie_embeddings=False)
    network = LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=model.num_layers,
            hidden_size=model.hidden_size,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.query_groups,
            intermediate_size=model.ffn_size,
            max_position_embeddings=model.sequence_length,
            vocab_size=model.vocab_size,
            attn_implementation="eager",
        )
    )
    counted = counted_per_token(network, model)
    # The rotary table is a small matrix product of its own, forward only, that no convention counts.
    rotary = 2 * model.head_size // 2
    assert flops.flops_per_token(model) == pytest.approx(counted, abs=2 * rotary)


def test_a_banded_layer_counts_its_window():
    banded = dataclasses.replace(TINY, attention_pattern=("dense", "banded"), attention_window=8)
    dense_layer = 12 * TINY.hidden_size * TINY.sequence_length
    saved = flops.flops_per_token(TINY) - flops.flops_per_token(banded)
    assert saved == dense_layer * (1 - 8 / TINY.sequence_length)  # layer 1 of 0, 1, 2
    wider = dataclasses.replace(banded, attention_window=10 * TINY.sequence_length)
    assert flops.flops_per_token(wider) == flops.flops_per_token(TINY)


def test_gpt3_as_published():
    """GPT-3 175B on 300B tokens: 3.14e23 FLOPs by 6 N D (arXiv 2005.14165, table D.1); attention adds a little."""
    model = ModelConfig(num_layers=96, hidden_size=12288, num_attention_heads=96)
    assert 3.14e23 < flops.flops_per_token(model) * 300e9 < 1.05 * 3.14e23


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIE"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-16GB", "V100"),
    ],
)
def test_device_names(name: str, device: str):
    bf16, fp32 = flops.PEAK_TFLOPS[device]
    assert flops.device_peak_tflops(name, "bf16") == bf16
    assert flops.device_peak_tflops(name, "fp32") == fp32


@pytest.mark.parametrize("name", ["x86_64", "cpu", "", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA X9000"])
def test_unknown_devices_have_no_peak(name: str):
    assert flops.device_peak_tflops(name, "bf16") is None
    assert flops.mfu(TINY, 1000.0, 1, None) is None


def test_peaks_are_dense():
    """H100's data sheet prints 1979 with sparsity: half of it is the truth for training."""
    assert flops.device_peak_tflops("NVIDIA H100 80GB HBM3", "bf16") == pytest.approx(1979 / 2)


def test_mfu_of_a_job_at_its_peak_is_one():
    tokens_per_second = 8 * 312e12 / flops.flops_per_token(TINY)
    assert flops.mfu(TINY, tokens_per_second, 8, 312.0) == pytest.approx(1.0)
