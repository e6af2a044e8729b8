"""Which kernels a model computes with: what `auto` means here, said once in the log."""

import logging
from dataclasses import asdict

import torch

from megagpt.config.schema import Config, KernelsConfig
from megagpt.errors import ConfigError
from megagpt.kernels.attention import triton_supports
from megagpt.kernels.backend import interpreted

log = logging.getLogger(__name__)


def choose_kernels(config: Config) -> KernelsConfig:
    """`config.kernels` without `auto`, logged.

    Raises ConfigError where Triton is asked for and there is no GPU, or its attention lacks what the model needs.
    """
    cuda = torch.cuda.is_available()
    wanted = asdict(config.kernels)
    if "triton" in wanted.values() and not cuda and not interpreted():
        key = next(key for key, backend in wanted.items() if backend == "triton")
        raise ConfigError(
            f"kernels.{key}=triton needs a CUDA device: use auto, or set TRITON_INTERPRET=1 to run kernels slowly in "
            "Triton's interpreter"
        )
    if wanted["attention"] == "flash_attn":
        _check_flash_attn(config)
    lacks = _attention_lacks(config)
    if wanted["attention"] == "triton" and lacks:
        raise ConfigError(f"kernels.attention=triton does not support {lacks}: use kernels.attention=sdpa")
    chosen = {key: ("triton" if cuda else "torch") if backend == "auto" else backend for key, backend in wanted.items()}
    if wanted["attention"] == "auto":
        chosen["attention"] = "triton" if cuda and not lacks else "sdpa"
    because = f" (Triton's lacks {lacks})" if cuda and lacks and wanted["attention"] == "auto" else ""
    log.info("kernels: %s%s", ", ".join(f"{key} {backend}" for key, backend in chosen.items()), because)
    return KernelsConfig(**chosen)


def _check_flash_attn(config: Config) -> None:
    try:
        import flash_attn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"kernels.attention=flash_attn needs the flash-attn package, which cannot be imported ({error}):"
            " docs/kernels.md says how to install it; or use kernels.attention=auto"
        ) from error
    if config.optim.precision == "fp32":
        raise ConfigError(
            "kernels.attention=flash_attn computes in bf16 only: set optim.precision=bf16, or kernels.attention=sdpa"
        )


def _attention_lacks(config: Config) -> str:
    """The feature that the Triton kernels of attention lack for this model; "" if none."""
    model = config.model
    if model.attention_dropout:
        return f"model.attention_dropout={model.attention_dropout}"
    if not triton_supports(torch.bfloat16, model.head_dim):
        return f"a head dimension of {model.head_dim}"
    if config.optim.precision == "fp32" and config.kernels.attention == "auto":
        return "optim.precision=fp32"
    return ""
