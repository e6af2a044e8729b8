"""Apex's and Transformer Engine's Adam, as stand-ins of the same interface, train, clip and resume like PyTorch's."""

import dataclasses
import sys
import types

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import Config
from megagpt.errors import ConfigError
from megagpt.parallel.adam import choose_adam
from tests.parallel.test_megatron import BATCH, GPT3, STEPS, _batch, config_of

CPU = torch.device("cpu")


class FusedAdam(torch.optim.Optimizer):
    """Counts steps by group and knows no grad_scale, like theirs; AdamW written out."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, adam_w_mode=True) -> None:
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert not hasattr(self, "grad_scale")
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), step = group["betas"], group["step"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * state["exp_avg"] / (1 - beta1**step) / root)


def curves(config: Config, fused: list[str], change_at: int) -> list[list[float]]:
    """Losses and gradient norms with one optimizer after the other, the second going on from the first's state."""
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective

    for name in ("transformer_engine.pytorch.optimizers", "apex.optimizers"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].FusedAdam = FusedAdam
    launch.initialize(config.parallel, config.seed)
    engines = []
    for name in fused:
        settings = dataclasses.replace(config, optim=dataclasses.replace(config.optim, fused=name))
        engines.append(build_engine(settings, LanguageModelObjective()))
    engine, found = engines[0], []
    for step in range(2 * STEPS):
        if step == change_at:
            for source, target in zip(*(each.shards(for_saving=False) for each in engines), strict=True):
                target.data.copy_(source.data)
            engine = engines[1]
            engine.post_load(step)
        share = BATCH // engine.dims.data_size
        first = engine.dims.data_rank * share
        rows = (range(row, row + 1) for row in range(first, first + share))
        result = engine.train_step((_batch(step, r, config.model) for r in rows), share, lr=2e-3)
        found.append([result.loss, result.grad_norm])
    launch.leave_groups()
    return found


@pytest.mark.parametrize(
    ("layout", "precision", "tolerance"), [({}, "bf16", 5e-3), ({"pipeline_parallel_size": 2}, "fp32", 1e-5)]
)
def test_each_goes_on_from_the_other(layout: dict, precision: str, tolerance: float):
    config = config_of(GPT3, layout, precision)  # clips at 0.5, which the first norms exceed
    expected, *others = (
        run_distributed(curves, 2, config, fused, STEPS)[0]
        for fused in (["torch", "torch"], ["te", "torch"], ["torch", "apex"])
    )
    assert expected[0][1] > config.optim.clip_grad
    for other in others:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(expected), rtol=tolerance, atol=0)


@pytest.mark.parametrize("content", ["", "raise RuntimeError('velruse')", "import no_such_module"])
def test_pypis_apex_is_recognised(content: str, tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex/__init__.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"not NVIDIA's .*PyPI's project of that name is another"):
        choose_adam("apex", CPU)
    assert choose_adam("auto", CPU) is torch.optim.AdamW


def test_what_is_not_installed_or_does_not_run_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"optim.fused=te cannot be used: .* cannot be imported"):
        choose_adam("te", CPU)
    module = types.ModuleType("transformer_engine.pytorch.optimizers")
    module.FusedAdam = torch.optim.LBFGS  # wants a closure
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ConfigError, match="does not run on cpu"):
        choose_adam("te", CPU)
