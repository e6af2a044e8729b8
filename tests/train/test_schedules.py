"""Learning rate against torch's schedulers, the batch ramp, and schedules that do not fit the run."""

import dataclasses
import re

import pytest
import torch

from megagpt.config.load import load
from megagpt.config.schema import Config, OptimConfig, Schedule
from megagpt.stages.supervised import with_epochs
from megagpt.train.schedules import describe_schedule, global_batch_size, learning_rate, misfits

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


WSD = dataclasses.replace(OPTIM, schedule="wsd", decay_fraction=0.2)


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
def test_wsd_equals_torchs_scheduler_of_the_published_formula(shape):
    """Haegele et al., arXiv 2405.18392: 1 - sqrt((n - N + D) / D) over the last D of N, or by equal steps."""
    decay, stable = 220, 880
    left = {"sqrt": lambda n: 1 - ((n - stable) / decay) ** 0.5, "linear": lambda n: (1100 - n) / decay}[shape]
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)

    def factor(n: int) -> float:
        return n / 100 if n < 100 else 1.0 if n < stable else 0.1 + 0.9 * left(n)

    theirs = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    optim = dataclasses.replace(WSD, decay_shape=shape)
    for tokens in range(1101):
        expected = 3e-4 * optimizer.param_groups[0]["lr"]
        assert learning_rate(optim, tokens) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()
    assert learning_rate(optim, 10**9) == pytest.approx(3e-5)


def test_wsd_decays_at_the_end_of_the_run_and_longer_runs_share_their_stable_phase():
    short = OptimConfig(schedule="wsd", train_tokens=10**6, warmup_tokens=10**4)
    longer = dataclasses.replace(short, train_tokens=3 * 10**6)
    assert (short.lengths.decay_tokens, short.decay_begin) == (10**6, 900_000)
    for tokens in range(0, short.decay_begin + 1, 10**4):
        assert learning_rate(short, tokens) == learning_rate(longer, tokens)
    assert learning_rate(short, 990_000) < learning_rate(longer, 990_000) == short.lr
    assert learning_rate(short, 10**6) == pytest.approx(0.1 * short.lr)
    assert not list(misfits(short))
    assert "lr 0.0006 stays until 900,000 and decays to 6e-05 at 1,000,000;" in describe_schedule(short) + ";"


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


def test_a_run_that_whole_steps_make_longer_says_so():
    optim = OptimConfig(global_batch_size=32, train_tokens=520, warmup_tokens=0, decay_tokens=520)
    (warning,) = [text for text in misfits(optim, sample_tokens=16) if "whole number of steps" in text]
    assert "the run takes 2 steps, 1,024 tokens" in warning
    assert not list(misfits(dataclasses.replace(optim, train_tokens=1024, decay_tokens=1024), sample_tokens=16))


def test_epochs_that_are_no_whole_steps_are_said(caplog):
    optim = OptimConfig(global_batch_size=8, train_epochs=1.0, train_tokens=None)
    config = with_epochs(Config(optim=optim), samples=11, sample_tokens=4)
    assert config.optim.train_tokens == 8 * 4
    assert "the run takes 8 samples, which is 0.73 epochs" in caplog.text
    caplog.clear()
    with_epochs(Config(optim=optim), samples=160, sample_tokens=4)
    assert not caplog.text


def test_no_ramp():
    assert global_batch_size(OptimConfig(global_batch_size=32), 0, 4) == 32


@pytest.mark.parametrize("size", ["125m", "1_3b", "6_7b"])
def test_train_tokens_alone_shorten_a_published_recipe(size):
    whole, short = (load([f"experiment=pretrain_{size}", *more]).optim for more in ([], ["optim.train_tokens=3e9"]))
    assert learning_rate(short, 3 * 10**9) == pytest.approx(0.1 * whole.lr)
    assert global_batch_size(short, 3 * 10**9, 8) == whole.global_batch_size
    for tokens in range(0, 300 * 10**9, 7 * 10**9):
        assert learning_rate(short, tokens // 100) == pytest.approx(learning_rate(whole, tokens))
        assert global_batch_size(short, tokens // 100, 1) == global_batch_size(whole, tokens, 1)
    assert not list(misfits(whole)) and not list(misfits(short))
    assert "scaled" not in describe_schedule(whole)
    assert describe_schedule(short) == (
        f"schedule of 3,000,000,000 tokens; warm-up over 3,750,000 (scaled); lr {whole.lr:g} decays to"
        f" {0.1 * whole.lr:g} at 2,600,000,000 (scaled); batch 16 to {whole.global_batch_size} over"
        f" {whole.published.ramp_tokens // 100:,} (scaled); scaled from the published 300,000,000,000 tokens"
    )


def test_lengths_that_are_given_win():
    overrides = ["experiment=pretrain_1_3b", "optim.train_tokens=3e9", "optim.warmup_tokens=1e6"]
    assert load(overrides).optim.lengths == Schedule(3 * 10**9, 10**6, 2_600_000_000, 60_000_000)
    overrides += ["optim.decay_tokens=260e9", "optim.ramp_tokens=6e9"]
    optim = load(overrides).optim
    assert optim.lengths == Schedule(3 * 10**9, 10**6, 260 * 10**9, 6 * 10**9)
    assert "scaled" not in describe_schedule(optim)


@pytest.mark.parametrize(
    ("name", "length", "effect"),
    [
        ("warmup_tokens", 5 * 10**9, "never reaches its peak (0.0002)"),
        ("decay_tokens", 260 * 10**9, "ends at 0.000199941 and not at its minimum (2e-05)"),
        ("ramp_tokens", 6 * 10**9, "never reaches optim.global_batch_size (512)"),
    ],
)
def test_a_part_longer_than_the_run_is_warned_of_with_what_fits(name, length, effect):
    fitting = load(["experiment=pretrain_1_3b", "optim.train_tokens=3e9"]).optim
    optim = dataclasses.replace(fitting, **{name: length})
    if name == "warmup_tokens":
        optim = dataclasses.replace(optim, decay_tokens=length)
    warning = next(text for text in misfits(optim) if text.startswith(f"optim.{name} ({length:,})"))
    assert effect in warning
    assert "optim.train_tokens (3,000,000,000)" in warning
    advised = int(re.search(rf"set optim.{name}=(\d+)", warning)[1])
    mended = dataclasses.replace(optim, **{name: advised})
    assert not [text for text in misfits(mended) if name in text]
    assert advised == getattr(fitting.lengths, name)


def test_parts_that_a_run_does_not_have_are_not_warned_of():
    short = {"train_tokens": 100, "warmup_tokens": 0, "ramp_tokens": 1000}
    assert not list(misfits(OptimConfig(**short, decay_tokens=1000, min_lr_ratio=1.0)))
    assert len(list(misfits(OptimConfig(**short, decay_tokens=1000, ramp_start=8)))) == 2
