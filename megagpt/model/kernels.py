"""Resolves `auto` in `config.kernels` for this machine and model, and logs the choice."""

import logging
from dataclasses import asdict
from importlib.util import find_spec

import torch

from megagpt.config.schema import Config, KernelsConfig
from megagpt.errors import ConfigError
from megagpt.kernels.attention import pytorch_backend, triton_supports
from megagpt.kernels.attention.flash_attn import check_softcap
from megagpt.kernels.attention.op import BACKENDS
from megagpt.kernels.backend import SHARED_KIB, chip, interpreted

log = logging.getLogger(__name__)


def choose_kernels(config: Config) -> KernelsConfig:
    """`config.kernels` with `auto` replaced by the chosen back end; logs the choice.

    Raises ConfigError when a chosen back end cannot run: Triton without a suitable GPU, Triton's attention without a
    feature of the model, another attention without the model's softcap, or flash-attn when it cannot be used.
    """
    softcap = config.model.attention_softcap
    cuda = torch.cuda.is_available()
    fits = cuda and chip() is not None
    wanted = asdict(config.kernels)
    if "triton" in wanted.values() and not fits and not interpreted():
        key = next(key for key, backend in wanted.items() if backend == "triton")
        raise ConfigError(f"kernels.{key}=triton {_unfit(cuda)}")
    if wanted["attention"] == "flash_attn":
        _check_flash_attn(config)
    lacks = _attention_lacks(config)
    if wanted["attention"] == "triton" and lacks:
        raise ConfigError(
            f"kernels.attention=triton does not support {lacks}: use kernels.attention={pytorch_backend(softcap)}"
        )
    if softcap and "softcap" in BACKENDS.get(wanted["attention"], (None, {}))[1]:
        raise ConfigError(
            f"kernels.attention={wanted['attention']} does not support model.attention_softcap={softcap}: use"
            " kernels.attention=auto"
        )
    chosen = {key: ("triton" if fits else "torch") if backend == "auto" else backend for key, backend in wanted.items()}
    if wanted["attention"] == "auto":
        chosen["attention"] = "triton" if fits and not lacks else pytorch_backend(softcap)
    because = ""
    if cuda and not fits and "auto" in wanted.values():
        because = f" (triton {_unfit(cuda)})"
    elif fits and lacks and wanted["attention"] == "auto":
        because = f" (Triton's lacks {lacks})"
    log.info("kernels: %s%s", ", ".join(f"{key} {backend}" for key, backend in chosen.items()), because)
    return KernelsConfig(**chosen)


def _unfit(cuda: bool) -> str:
    """Why Triton's kernels cannot be used here, and how to fix it."""
    if not cuda:
        return "needs a CUDA device: use auto, or set TRITON_INTERPRET=1 to run kernels slowly in Triton's interpreter"
    if find_spec("triton") is None:
        return "is not installed: pip install triton, or use auto"
    major, minor = torch.cuda.get_device_capability()
    return (
        f"needs a GPU of compute capability {min(SHARED_KIB) / 10} with {min(SHARED_KIB.values())} KiB of shared "
        f"memory or more, and this one has {major}.{minor}: use auto"
    )


def _check_flash_attn(config: Config) -> None:
    try:
        import flash_attn
    except ImportError as error:
        raise ConfigError(
            f"kernels.attention=flash_attn needs the flash-attn package, which cannot be imported ({error}):"
            " docs/kernels.md says how to install it; or use kernels.attention=auto"
        ) from error
    if config.optim.precision == "fp32":
        raise ConfigError(
            "kernels.attention=flash_attn computes in bf16 only: set optim.precision=bf16, or kernels.attention=sdpa"
        )
    if config.model.attention_softcap:
        try:
            check_softcap(flash_attn.flash_attn_func, config.model.attention_dropout)
        except ValueError as error:
            raise ConfigError(f"model.attention_softcap={config.model.attention_softcap}: {error}") from error


def _attention_lacks(config: Config) -> str:
    """The feature of this model that Triton's attention does not support; "" if it supports all."""
    model = config.model
    if model.attention_dropout:
        return f"model.attention_dropout={model.attention_dropout}"
    if not triton_supports(torch.bfloat16, model.head_size):
        return f"a head dimension of {model.head_size}"
    if config.optim.precision == "fp32" and config.kernels.attention == "auto":
        return "optim.precision=fp32"
    return ""
