"""Learning rate against torch's schedulers, and the batch ramp."""

import pytest
import torch

from megagpt.config.schema import OptimConfig
from megagpt.train.schedules import global_batch_size, learning_rate

OPTIM = OptimConfig(lr=3e-4, warmup_tokens=100, decay_tokens=1100, global_batch_size=64, ramp_start=8, ramp_tokens=700)


def test_equals_torch_schedulers():
    """One scheduler step a token: torch's linear warm-up, then its cosine annealing."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=OPTIM.lr)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-9, total_iters=OPTIM.warmup_tokens)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, OPTIM.decay_tokens - OPTIM.warmup_tokens, OPTIM.lr * OPTIM.min_lr_ratio
    )
    theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [OPTIM.warmup_tokens])
    for tokens in range(OPTIM.decay_tokens):
        assert learning_rate(OPTIM, tokens) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-5, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_stays_at_the_minimum():
    minimum = OPTIM.lr * OPTIM.min_lr_ratio
    assert learning_rate(OPTIM, OPTIM.decay_tokens) == pytest.approx(minimum)
    assert learning_rate(OPTIM, 10**12) == pytest.approx(minimum)


def test_no_warmup_starts_at_the_peak():
    optim = OptimConfig(lr=1.0, warmup_tokens=0, decay_tokens=10)
    assert learning_rate(optim, 0) == 1.0


@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_batch_ramp(multiple):
    sizes = [global_batch_size(OPTIM, tokens, multiple) for tokens in range(1000)]
    assert sizes[0] == OPTIM.ramp_start
    assert set(sizes[OPTIM.ramp_tokens :]) == {OPTIM.global_batch_size}
    assert sizes == sorted(sizes)
    assert all(size % multiple == 0 for size in sizes)
    for tokens in range(OPTIM.ramp_tokens):
        exact = OPTIM.ramp_start + (OPTIM.global_batch_size - OPTIM.ramp_start) * tokens / OPTIM.ramp_tokens
        assert exact - multiple < sizes[tokens] <= exact


def test_no_ramp():
    assert global_batch_size(OptimConfig(global_batch_size=32), 0, 4) == 32
