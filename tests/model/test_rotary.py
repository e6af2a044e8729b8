"""Rotary frequencies against transformers' formulas, at sizes that published models have."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megagpt.config.architecture import ModelConfig, RopeScalingConfig
from megagpt.model.rotary import Rotary, rotary_frequencies, rotate

MODEL = ModelConfig(hidden_size=2048, num_attention_heads=16, sequence_length=8192, position_embedding="rope")
LLAMA3 = RopeScalingConfig("llama3", factor=8.0, original_length=8192, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = RopeScalingConfig("yarn", factor=4.0, original_length=32768)


@pytest.mark.parametrize(
    ("scaling", "base", "fraction"),
    [
        (RopeScalingConfig("linear", factor=8.0), 1e6, 1.0),
        (RopeScalingConfig("dynamic", factor=2.0), 1e4, 1.0),
        (LLAMA3, 5e5, 1.0),
        (replace(LLAMA3, factor=32.0, low_freq_factor=2.0), 5e5, 0.5),
        (YARN, 1e6, 1.0),
        (replace(YARN, truncate=False), 1e6, 1.0),
        (replace(YARN, attention_factor=1.25, beta_fast=16.0, beta_slow=2.0), 1e4, 0.25),
        (replace(YARN, factor=1.0), 1e4, 1.0),
        (replace(YARN, original_length=256, beta_fast=1.1), 1e4, 1.0),
    ],
)
def test_frequencies_are_those_of_transformers(scaling: RopeScalingConfig, base: float, fraction: float):
    original = scaling.original_length or MODEL.sequence_length
    theirs = {
        "rope_type": scaling.kind,
        "rope_theta": base,
        "partial_rotary_factor": fraction,
        "factor": scaling.factor,
        "original_max_position_embeddings": original,
    }
    if scaling.kind == "llama3":
        theirs |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        names = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        theirs |= {name: getattr(scaling, name) for name in names}
    settings = LlamaConfig(
        hidden_size=2048, num_attention_heads=16, max_position_embeddings=8192, rope_parameters=theirs
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS[scaling.kind](settings)
    model = replace(MODEL, rope_base=base, rotary_fraction=fraction, rope_scaling=scaling)
    found, factor = rotary_frequencies(model)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


def test_banded_layers_have_their_own_base():
    model = replace(MODEL, rope_base=1e6, rope_local_base=1e4, rope_scaling=LLAMA3)
    plain = rotary_frequencies(replace(MODEL, rope_base=1e4))[0]
    assert torch.equal(rotary_frequencies(model, banded=True)[0], plain)
    assert not torch.equal(rotary_frequencies(model)[0], plain)
    table = Rotary(model).table(5, torch.zeros(1))
    assert table.shape == (2, 2, 5, 128)
    angles = torch.outer(torch.arange(5.0), plain)
    torch.testing.assert_close(table[1, 0, :, :64], angles.cos())
    torch.testing.assert_close(table[1, 1, :, 64:], angles.sin())


def test_a_fraction_of_a_head_turns_and_the_rest_stays():
    rotary = Rotary(replace(MODEL, hidden_size=128, rotary_fraction=0.5))
    x = torch.randn(7, 2, 16, 8)
    turned = rotate(x, rotary.of_sequence(7, x)[0].unbind())
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4].norm(dim=-1), x[..., :4].norm(dim=-1))
    assert not torch.allclose(turned[1:, ..., :4], x[1:, ..., :4])
    at = rotate(x[3], rotary.at(torch.full((2,), 3), x)[0].unbind())
    torch.testing.assert_close(at, turned[3])
