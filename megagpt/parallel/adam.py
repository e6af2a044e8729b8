"""AdamW of PyTorch, Transformer Engine or NVIDIA Apex behind the same functions for step counts, clipping and state."""

import importlib
import importlib.util
import logging

import torch

from megagpt.errors import ConfigError
from megagpt.parallel.common import MOMENTS
from megagpt.parallel.muon import Muon

log = logging.getLogger(__name__)

MODULES = {
    "torch": ("torch.optim", "AdamW"),
    "te": ("transformer_engine.pytorch.optimizers", "FusedAdam"),
    "apex": ("apex.optimizers", "FusedAdam"),
}


def choose_adam(fused: str, device: torch.device) -> type[torch.optim.Optimizer]:
    """The class of AdamW for `optim.fused` on `device`; logs the choice.

    auto: on CUDA, Transformer Engine's if it is installed and works, else Apex's, else PyTorch's; on a CPU, PyTorch's.
    Raises ConfigError when the named implementation is not installed or does not work.
    """
    if fused != "auto":
        adam, problem = _find(fused, device)
        if adam is None:
            raise ConfigError(f"optim.fused={fused} cannot be used: {problem}; or set optim.fused=auto or torch")
        log.info("optimizer: AdamW of %s", fused)
        return adam
    for name in ("te", "apex", "torch") if device.type == "cuda" else ("torch",):
        adam, problem = _find(name, device)
        if adam is not None:
            log.info("optimizer: AdamW of %s", name)
            return adam
        log.debug("optim.fused=auto passes over %s: %s", name, problem)
    raise AssertionError("PyTorch's AdamW is always there")


def _find(name: str, device: torch.device) -> tuple[type[torch.optim.Optimizer] | None, str]:
    """The class, after a trial update on `device`, and ""; or None and a description of the problem."""
    module, attribute = MODULES[name]
    try:
        adam = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        if name == "apex" and importlib.util.find_spec("apex") is not None:
            return None, (
                f"the installed `apex` is not NVIDIA's ({error!r}): PyPI's project of that name is another one. Build"
                " NVIDIA Apex from source (docs/training.md)"
            )
        return None, f"{module} cannot be imported ({error!r}); docs/training.md says how to install it"
    trial = torch.nn.Parameter(torch.zeros(8, device=device))
    trial.grad = torch.zeros_like(trial)
    try:
        adam([trial], lr=1e-3).step()
    except Exception as error:
        return None, f"{module}.{attribute} does not run on {device} ({error})"
    return adam, ""


def prepare(adam: torch.optim.Optimizer) -> None:
    """Create the state of every parameter, so that a checkpoint can be loaded into it; turn on PyTorch's fused kernel.

    PyTorch counts steps per parameter, and each parameter needs its own count tensor, because an update increments the
    count of every parameter. Apex and Transformer Engine count steps per group.
    """
    for group in adam.param_groups:
        if counts_by_parameter(adam):
            group |= {"fused": True, "foreach": False}
        for parameter in group["params"]:
            keys = adam.state_names(parameter) if isinstance(adam, Muon) else MOMENTS
            state = {key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in keys}
            if counts_by_parameter(adam):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            adam.state[parameter] = state
    set_step(adam, 0)


def set_step(adam: torch.optim.Optimizer, step: int) -> None:
    """Set the number of updates that the optimizer has made; the bias correction of the moments depends on it."""
    if counts_by_parameter(adam):
        for state in adam.state.values():
            state["step"].fill_(step)
    else:
        for group in adam.param_groups:
            group["step"] = step


def scale_gradients(adam: torch.optim.Optimizer, divisor: float, device: torch.device) -> None:
    """Divide the gradients of the next update by `divisor`."""
    if counts_by_parameter(adam):  # the fused kernel divides while it reads them, which saves a pass
        adam.grad_scale = torch.full((), divisor, device=device)
    elif divisor != 1.0:
        torch._foreach_div_([p.grad for group in adam.param_groups for p in group["params"]], divisor)


def counts_by_parameter(adam: torch.optim.Optimizer) -> bool:
    """Whether this is PyTorch's AdamW; the others count steps per group and do not support `grad_scale`."""
    return isinstance(adam, torch.optim.AdamW)
