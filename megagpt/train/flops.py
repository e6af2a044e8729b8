"""FLOPs per token of a model, peak FLOP/s of a device, and the utilisation (MFU) that follows from them."""

import re
from typing import Literal

from megagpt.config.schema import ModelConfig

PEAK_TFLOPS = {
    # Words of a device's name: (dense tensor-core TFLOP/s in bf16, TFLOP/s in fp32), from the makers' data sheets.
    # bf16 figures are without 2:4 sparsity, which would double them. fp32 figures are without tensor cores, as
    # PyTorch computes unless TF32 is allowed. None if the hardware lacks the precision.
    "V100": (None, 15.7),
    "A10": (125.0, 31.2),
    "A30": (165.0, 10.3),
    "A40": (149.7, 37.4),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "RTX A6000": (154.8, 38.7),
    "L4": (121.0, 30.3),
    "L40": (181.0, 90.5),
    "L40S": (362.0, 91.6),
    "RTX 3090": (71.0, 35.6),
    "RTX 4090": (165.2, 82.6),
    "RTX 5090": (209.5, 104.8),
    "H20": (148.0, 44.0),
    "H100": (989.5, 66.9),
    "H100 PCIE": (756.5, 51.2),
    "H100 NVL": (835.5, 60.0),
    "H800": (989.5, 66.9),
    "H200": (989.5, 66.9),
    "H200 NVL": (835.5, 60.0),
    "GH200": (989.5, 66.9),
    "B200": (2250.0, 75.0),
    "GB200": (2500.0, 80.0),
    "MI250X": (383.0, 47.9),
    "MI300X": (1307.4, 163.4),
}


def matmul_parameters(model: ModelConfig) -> int:
    """Number of weights that every token is multiplied by: all matrices and the head, not the embedding table."""
    hidden = model.hidden_size
    attention = hidden * model.head_size * 2 * (model.num_attention_heads + model.query_groups)
    feed_forward = hidden * model.ffn_size * (3 if model.is_gated else 2)
    return model.num_layers * (attention + feed_forward) + hidden * model.output_size


def flops_per_token(model: ModelConfig) -> float:
    """Model FLOPs of one token's forward and backward pass, at the full sequence length.

    The convention is that of Megatron-LM (arXiv 2104.04473) and PaLM (arXiv 2204.02311, appendix B). A multiply-add has
    2 FLOPs, and the backward pass needs twice the forward pass, so each matrix weight costs 6 FLOPs. Attention costs
    12 x width x keys per layer. A dense layer's keys are the whole sequence, without a factor of 1/2 for causality, so
    that MFU is comparable with published figures; a banded layer's keys are its window. Recomputation, norms, softmax
    and the padding of the vocabulary do not count.
    """
    windows = [model.window(layer) or model.sequence_length for layer in range(model.num_layers)]
    keys = sum(min(window, model.sequence_length) for window in windows)
    return 6 * matmul_parameters(model) + 12 * keys * model.num_attention_heads * model.head_size


def device_peak_tflops(name: str, precision: Literal["fp32", "bf16"]) -> float | None:
    """Peak dense TFLOP/s at a precision of the device `name`, a result of `torch.cuda.get_device_name()`.

    None when it is unknown: for a CPU, for a device that is not listed, or for a slice of a device (MIG).
    """
    words = set(re.split(r"[\s-]+", name.upper()))
    known = [device for device in PEAK_TFLOPS if words.issuperset(device.split())]
    if not known or "MIG" in words:
        return None
    return PEAK_TFLOPS[max(known, key=len)][("bf16", "fp32").index(precision)]


def mfu(model: ModelConfig, tokens_per_second: float, devices: int, peak_tflops: float | None) -> float | None:
    """Model FLOPs utilisation, 0 to 1: FLOP/s of the model divided by the peak FLOP/s of all `devices`.

    tokens_per_second: of the whole job. peak_tflops: of one device; if it is None or 0, the result is None.
    """
    if not peak_tflops:
        return None
    return flops_per_token(model) * tokens_per_second / (devices * peak_tflops * 1e12)
